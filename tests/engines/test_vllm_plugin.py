"""The plugin for vLLM, with modules named as vLLM 0.33 names them, and with vLLM's own where MOESIM_VLLM has them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from moesim.base.errors import FormatError, InputError
from moesim.engines.vllm import VARIABLE, install
from moesim.placement import EMPTY, Placement

torch = pytest.importorskip("torch", reason="vLLM hands its policy torch tensors")

PLACEMENT = Placement([[[0, 1], [2, 0]], [[2, 1], [0, 2]]], 3)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A map that the environment names."""
    path = tmp_path / "experts.json"
    PLACEMENT.write(path, format="vllm")
    monkeypatch.setenv(VARIABLE, str(path))
    return path


class Policy:
    """Where vLLM's abstract policy stands."""


def modules(monkeypatch: pytest.MonkeyPatch, **names: Any) -> ModuleType:
    """Put vllm.distributed.eplb.policy with these names among the imported modules."""
    made = ""
    for part in ("vllm", "distributed", "eplb", "policy"):
        made = f"{made}.{part}".lstrip(".")
        module = ModuleType(made)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, made, module)
    vars(module).update(names)
    return module


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """vLLM's table of policies."""
    table: dict[str, Any] = {"default": Policy}
    modules(monkeypatch, AbstractEplbPolicy=Policy, EPLB_POLICIES=table)
    return table


def test_vllm_finds_it(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["vllm.general_plugins"]["moesim"]
    module, _, attribute = target.partition(":")
    assert getattr(importlib.import_module(module), attribute) is install


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch, policies: dict[str, Any]) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    install()
    assert policies == {"default": Policy}


def test_without_vllm_it_imports_and_does_nothing() -> None:
    program = (
        "import sys; sys.modules['vllm'] = sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from moesim.engines.vllm import install; install()"
    )
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_the_policy_answers_with_the_map(planned: Path, policies: dict[str, Any]) -> None:
    install()
    install()  # as vLLM does, once a process and sometimes more
    policy = policies["default"]
    assert issubclass(policy, Policy)
    old = torch.tensor([[0, 1, 2, 0]] * 2)
    for loads in (torch.zeros(2, 3), torch.rand(2, 3) * 1000):
        answer = policy.rebalance_experts(loads, 4, 1, 1, 2, old)
        assert answer.dtype == torch.int64
        assert answer.device.type == "cpu"
        assert answer.tolist() == [[0, 1, 2, 0], [2, 1, 0, 2]]
    # a caller that changes what it was given changes nothing
    answer[:] = 0
    assert policy.rebalance_experts(torch.zeros(2, 3), 4, 1, 1, 2).tolist() == [[0, 1, 2, 0], [2, 1, 0, 2]]


@pytest.mark.parametrize(("asked", "found"), [
    ((1, 3, 4, 2), "1 MoE layers of 3 experts in 4 slots of 2 ranks"),  # a draft model
    ((2, 4, 4, 2), "2 MoE layers of 4 experts in 4 slots of 2 ranks"),
    ((2, 3, 6, 2), "2 MoE layers of 3 experts in 6 slots of 2 ranks"),
    ((2, 3, 4, 4), "2 MoE layers of 3 experts in 4 slots of 4 ranks"),
])  # fmt: skip
def test_what_the_map_does_not_fit_is_refused(
    asked: tuple[int, int, int, int], found: str, planned: Path, policies: dict[str, Any]
) -> None:
    install()
    layers, experts, slots, ranks = asked
    with pytest.raises(InputError, match=f"2 MoE layers of 3 experts in 4 slots of 2 ranks, but vLLM asks for {found}"):
        policies["default"].rebalance_experts(torch.zeros(layers, experts), slots, 1, 1, ranks)


def test_errors_name_the_variable(planned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modules(monkeypatch)
    with pytest.raises(InputError, match=f"{VARIABLE}=.*this vLLM has no such policies"):
        install()
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in [name for name in sys.modules if name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=f"{VARIABLE}=.*cannot import vllm.distributed.eplb.policy.*unset {VARIABLE}"):
        install()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent.json"))
    with pytest.raises(FormatError, match=r"absent\.json: no such file"):
        install()
    Placement([[[0, 1], [2, EMPTY]]], 3).write(tmp_path / "holes.json")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "holes.json"))
    with pytest.raises(InputError, match="slot 1 is empty"):
        install()


def test_vllms_own_policies(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("MOESIM_VLLM")
    if folder is None:
        pytest.skip("MOESIM_VLLM names no folder with the unpacked wheel of vllm 0.33")
    for name in ("vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.config", "vllm.config.parallel"):
        # bare packages: their own initialisation wants a GPU stack
        module = ModuleType(name)
        module.__path__ = [str(Path(folder, *name.split(".")))]
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["vllm.config.parallel"].EPLBPolicyOption = Literal["default"]  # type: ignore[attr-defined]
    for name in ("policy", "policy.abstract", "policy.default"):
        # so that they are forgotten afterwards
        monkeypatch.setitem(sys.modules, f"vllm.distributed.eplb.{name}", ModuleType(name))
        del sys.modules[f"vllm.distributed.eplb.{name}"]
    own = importlib.import_module("vllm.distributed.eplb.policy")
    before = own.EPLB_POLICIES["default"]
    install()
    after = own.EPLB_POLICIES["default"]
    assert after is not before
    assert issubclass(after, own.AbstractEplbPolicy)
    assert not after.__abstractmethods__
    given = (torch.rand(2, 3), 4, 1, 1, 2, torch.tensor([[0, 1, 2, 0]] * 2))
    theirs, ours = before.rebalance_experts(*given), after.rebalance_experts(*given)
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert ours.tolist() == PLACEMENT.physical_to_logical.tolist()
