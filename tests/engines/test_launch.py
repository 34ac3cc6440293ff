"""The arguments that go with a map, and the rules whose breach an engine would not mention."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.placement import EMPTY, PLACEMENT_FORMATS, POLICIES, Placement
from moesim.placement import export as exporting
from moesim.placement.architectures import SGLANG, TRTLLM, architecture_of
from moesim.placement.export import export
from moesim.placement.launch import RULES, engine_formats, launch
from moesim.spec import ModelSpec

SPEC = ModelSpec("deepseek-v3-short", (1, 3), 4, experts=6, top_k=2, hidden=8, intermediate=8)
PLACEMENT = Placement([[[0, 1], [2, 3], [4, 5], [0, 1]], [[0, 1], [2, 3], [4, 5], [2, 0]]], 6).for_model(SPEC)
PLAIN = Placement([[[0, 1, 2], [3, 4, 5]]] * 2, 6).for_model(SPEC)
RUNS = {
    "sglang": "nearest", "trtllm": "uniform", "vllm": "hash", "vllm-41141": "hash", "vllm-49572": "hash",
    "vllm-ascend": "uniform",
}  # fmt: skip


def flags_of(placement: Placement, policy: str, format: str) -> list[str]:
    return list(launch(placement, "experts.json", format, spec=SPEC, policy=policy).flags)


def option(flags: list[str], name: str) -> Any:
    return json.loads(flags[flags.index(name) + 1])


def test_sglang() -> None:
    assert flags_of(PLACEMENT, "nearest", "sglang") == shlex.split(
        "--init-expert-location experts.json --tp-size 4 --ep-size 4 --ep-num-redundant-experts 2 "
        "--moe-a2a-backend deepep --ep-dispatch-algorithm static"
    )
    # even use of all copies takes a backend without all-to-all, and that refuses the static table
    assert flags_of(PLACEMENT, "uniform", "sglang")[-4:] == shlex.split(
        "--moe-a2a-backend none --ep-dispatch-algorithm dynamic"
    )
    assert flags_of(PLAIN, "uniform", "sglang")[-5:] == shlex.split(
        "0 --moe-a2a-backend deepep --ep-dispatch-algorithm static"
    )


def test_sglang_is_told_how_attention_was_planned() -> None:
    notes = launch(PLACEMENT, "e.json", "sglang", spec=SPEC, policy="nearest").notes
    assert any("--enable-dp-attention --dp-size 4" in note for note in notes)


def test_sglang_counts_nodes_off() -> None:
    flags = launch(PLACEMENT, "e.json", "sglang", spec=SPEC, policy="nearest", node=[3, 3, 5, 5]).flags
    assert flags[-2:] == ("--nnodes", "2")
    notes = " ".join(launch(PLACEMENT, "e.json", "sglang", spec=SPEC, policy="nearest", node=[0, 0, 1, 1]).notes)
    assert "--node-rank 0 to 1 in the order of the plan and --dist-init-addr" in notes
    assert "--nnodes" not in launch(PLACEMENT, "e.json", "sglang", spec=SPEC, policy="nearest", node=[0] * 4).flags
    for node in ([0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]):
        with pytest.raises(InputError, match=r"SGLang.*rule 'nodes'"):
            launch(PLACEMENT, "e.json", "sglang", spec=SPEC, policy="nearest", node=node)
    with pytest.raises(InputError, match="node of each of 4 ranks, got 2"):
        launch(PLACEMENT, "e.json", "sglang", spec=SPEC, node=[0, 1])


def test_tensorrt_llm() -> None:
    started = launch(PLACEMENT, "my maps/e.yaml", "trtllm", spec=SPEC, policy="uniform")
    assert list(started.flags) == shlex.split("--tp_size 4 --ep_size 4 --extra_llm_api_options llm_api.yaml")
    assert yaml.safe_load(started.config) == {
        "enable_attention_dp": True,
        "moe_config": {"backend": "WIDEEP", "load_balancer": "my maps/e.yaml"},
    }
    assert any("multi-token prediction" in note and "from 4" in note for note in started.notes)


def test_vllm() -> None:
    started = launch(PLACEMENT, "a b.json", "vllm", policy="hash")
    assert started.environment == {"MOESIM_VLLM_MAP": "a b.json"}
    assert shlex.split(started.command_line) == ["MOESIM_VLLM_MAP=a b.json", "vllm", "serve", "MODEL", *started.flags]
    assert started.flags[:4] == ("--enable-expert-parallel", "--data-parallel-size", "4", "--enable-eplb")
    assert option(list(started.flags), "--eplb-config") == {"num_redundant_experts": 2, "step_interval": 400}


def test_vllm_proposals_are_marked() -> None:
    keys = {
        "vllm-41141": {"initial_mapping_path": "e.json", "disable_online_rebalancing": True},
        "vllm-49572": {"initial_expert_map_path": "e.json"},
    }
    for format, settings in keys.items():
        started = launch(PLACEMENT, "e.json", format)
        assert option(list(started.flags), "--eplb-config") == {"num_redundant_experts": 2, **settings}
        assert any("experimental" in note and format.removeprefix("vllm-") in note for note in started.notes)


def test_ascend() -> None:
    flags = flags_of(PLACEMENT, "uniform", "vllm-ascend")
    assert option(flags, "--additional-config") == {"eplb_config": {"expert_map_path": "experts.json"}}
    assert flags[:3] == ["--enable-expert-parallel", "--data-parallel-size", "4"]


@pytest.mark.parametrize("format", engine_formats())
@pytest.mark.parametrize("policy", POLICIES.names())
def test_policies_that_an_engine_cannot_run_are_refused(format: str, policy: str) -> None:
    runs = {
        "sglang": {"sglang", "nearest", "batch-lp", "uniform", "random"},
        "trtllm": {"uniform", "random"},
        "vllm-ascend": {"uniform"},
    }.get(format, {"hash", "uniform", "random"})
    if policy in runs:
        assert flags_of(PLACEMENT, policy, format)
    else:
        with pytest.raises(InputError, match=f"rule 'policy': it does not dispatch by '{policy}'.*plan with policy"):
            flags_of(PLACEMENT, policy, format)
    # without copies there is nothing to choose
    assert flags_of(PLAIN, policy, format)


@pytest.mark.parametrize("format", engine_formats())
def test_no_policy_is_accepted_with_a_note(format: str) -> None:
    assert any("does not hold" in note for note in launch(PLACEMENT, "e.json", format, spec=SPEC).notes)
    assert not any("does not hold" in note for note in launch(PLAIN, "e.json", format, spec=SPEC).notes)


def test_models_for_which_the_map_would_be_ignored() -> None:
    for name in ("mixtral-8x7b", "olmoe-1b-7b"):
        spec = ModelSpec.preset(name)
        placement = Placement([[range(spec.experts)]] * spec.layers, spec.experts)
        with pytest.raises(InputError, match=r"SGLang.*rule 'known model'.*would serve and ignore the map"):
            launch(placement, "e.json", "sglang", spec=spec)
    with pytest.raises(InputError, match=r"TensorRT-LLM.*rule 'known model': GptOssForCausalLM"):
        launch(PLACEMENT, "e.yaml", "trtllm", spec=SPEC, architecture="GptOssForCausalLM")
    assert launch(PLACEMENT, "e.json", "sglang", spec=SPEC, architecture="GptOssForCausalLM")
    unknown = ModelSpec("mine", (1, 3), 4, experts=6, top_k=2, hidden=8, intermediate=8)
    for spec in (unknown, None):
        assert any("not known: check" in note for note in launch(PLACEMENT, "e.json", "sglang", spec=spec).notes)


def test_architectures_by_name() -> None:
    assert architecture_of("deepseek-ai/DeepSeek-V3") == architecture_of("kimi-k2") == "DeepseekV3ForCausalLM"
    assert architecture_of("Qwen/Qwen3-30B-A3B") == "Qwen3MoeForCausalLM"
    assert architecture_of("allenai/OLMoE-1B-7B-0924") == "OlmoeForCausalLM"
    assert architecture_of("mine @ deepseek-v3") is None
    served = {name: architecture_of(name) for name in ("deepseek-v2", "gpt-oss-120b", "qwen3-235b-a22b")}
    assert set(served.values()) <= SGLANG
    assert {architecture_of(name) for name in ("mixtral-8x22b", "llama-4-scout", "qwen1.5-moe-a2.7b")} <= TRTLLM


@pytest.mark.parametrize(("broken", "rule"), [
    ({"placement": Placement([[[0, 1], [2, 3], [4, 5], [0, EMPTY]]] * 2, 6)}, "full slots"),
    ({"placement": Placement(PLACEMENT.experts, 6), "format": "trtllm"}, "layer numbers"),
    ({"placement": Placement(PLACEMENT.experts, 6)}, "layer numbers"),
    ({"path": "experts"}, "file name"),
    ({"path": "experts.yaml", "format": "vllm-ascend"}, "file name"),
    ({"placement": Placement([[range(6)]] * 2, 6), "format": "vllm"}, "several ranks"),
    ({"placement": Placement([[range(6)]] * 2, 6).for_model(SPEC), "format": "trtllm"}, "several ranks"),
    ({"policy": "hash"}, "policy"),
    ({"architecture": "MixtralForCausalLM"}, "known model"),
    ({"node": [0, 1, 0, 1]}, "nodes"),
])  # fmt: skip
def test_a_refusal_names_its_rule(broken: dict[str, Any], rule: str, tmp_path: Path) -> None:
    asked = {"placement": PLACEMENT, "path": "e.json", "format": "sglang", "policy": None} | broken
    path = tmp_path / asked.pop("path")
    with pytest.raises(InputError, match=f"rule '{rule}'"):
        export(path=path, **asked)
    assert list(tmp_path.iterdir()) == []
    assert rule in RULES


def test_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="has 2 layers of 6 experts, but model 'deepseek-v3' has 58 MoE layers of 256"):
        launch(PLACEMENT, "e.json", "sglang", spec=ModelSpec.preset("deepseek-v3"))
    with pytest.raises(UnknownName, match="did you mean 'sglang'"):
        launch(PLACEMENT, "e.json", "sglan")
    with pytest.raises(UnknownName, match="dispatch policy 'nearst'"):
        launch(PLACEMENT, "e.json", "sglang", policy="nearst")
    with pytest.raises(UnknownName, match="placement format 'sglan'"):
        export(PLACEMENT, "e.json", "sglan")


@pytest.mark.parametrize("format", PLACEMENT_FORMATS.names())
def test_what_is_exported_was_read_back(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"e.{'npz' if format == 'eplb' else 'json'}"
    started = export(PLACEMENT, path, format, spec=SPEC, policy=RUNS.get(format))
    assert (started is None) == (format not in engine_formats())
    assert Placement.read(path, format, ranks=4, spec=SPEC) == PLACEMENT
    monkeypatch.setattr(exporting, "read_placement", lambda *_, **__: PLAIN)
    with pytest.raises(FormatError, match="do not use the file"):
        export(PLACEMENT, path, format, spec=SPEC)
