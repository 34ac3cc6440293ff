"""Published models have the parameter counts that were published."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.base.errors import Infeasible, InputError, UnknownName
from moesim.cluster import Cluster
from moesim.presets import ALIASES, NOTES, PRESETS
from moesim.solve.memory import check_memory, other_weights, slots_that_fit
from moesim.spec import ModelSpec
from moesim.trace.trace import layer_subset

# total and active parameters in billions, from each model's report or model card; None where it tells none
PUBLISHED = {
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (141, 39),
    "deepseek-v2-lite": (15.7, 2.4),
    "deepseek-v2": (236, 21),
    "deepseek-v3": (671, 37),
    "kimi-k2": (1040, 32),
    "glm-4.5": (355, 32),
    "qwen1.5-moe-a2.7b": (14.3, 2.7),
    "qwen2-57b-a14b": (57.4, 14),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "gpt-oss-20b": (20.9, 3.6),
    "gpt-oss-120b": (116.8, 5.1),
    "olmoe-1b-7b": (6.9, 1.3),
    "llama-4-scout": (109, 17),
    "llama-4-maverick": (400, 17),
    "switch-c-2048": (1571, None),
    "v-moe-h14": (7.16, None),
    "rumoured-gpt-4": (1800, 280),
}
# what a preset leaves out (NOTES), or a figure that was only rumoured
TOLERANCE = {"kimi-k2": 0.015, "llama-4-scout": 0.015, "rumoured-gpt-4": 0.02}


@pytest.mark.parametrize("name", PRESETS)
def test_total_parameters_match_the_published_figure(name: str):
    assert PRESETS[name].parameters() / 1e9 == pytest.approx(PUBLISHED[name][0], rel=TOLERANCE.get(name, 0.01))


@pytest.mark.parametrize("name", [name for name in PRESETS if PUBLISHED[name][1]])
def test_active_parameters_match_the_published_figure(name: str):
    # reports differ in whether the (input) embedding counts as active: compare without one embedding, or with
    spec = PRESETS[name]
    embedding = spec.vocab * spec.hidden
    active = spec.parameters(active=True)
    assert min(abs(a / 1e9 / PUBLISHED[name][1] - 1) for a in (active, active - embedding)) < 0.03


def test_other_names_and_what_is_said_of_presets():
    assert ModelSpec.preset("deepseek-r1") is PRESETS["deepseek-v3"]
    assert ModelSpec.preset("switch-1.6t").top_k == 1
    assert not set(ALIASES) & set(PRESETS)
    assert set(ALIASES.values()) | set(NOTES) <= set(PRESETS)
    assert "never published" in NOTES["rumoured-gpt-4"]
    assert "encoder" in NOTES["switch-c-2048"]


def test_routing_replayed_at_other_dimensions_keeps_its_experts_and_says_so():
    small, big = PRESETS["olmoe-1b-7b"], PRESETS["deepseek-v3"]
    replayed = small.at_dimensions(big)
    assert (replayed.experts, replayed.top_k, replayed.layers) == (small.experts, small.top_k, small.layers)
    assert (replayed.hidden, replayed.intermediate) == (big.hidden, big.intermediate)
    assert replayed.name == "olmoe-1b-7b @ deepseek-v3"


def test_a_replay_has_the_widths_of_the_other_model_outside_its_moe_layers_too():
    small, big = PRESETS["deepseek-v2-lite"], PRESETS["deepseek-v3"]
    replayed = small.at_dimensions(big)
    assert replayed.vocab == big.vocab
    assert replayed.dense_intermediate == big.dense_intermediate
    # with the same depth and routing nothing of the small model is left
    alike = dataclasses.replace(
        small, experts=big.experts, top_k=big.top_k, layer_ids=big.layer_ids, num_hidden_layers=big.num_hidden_layers
    )
    assert alike.at_dimensions(big).parameters() == big.parameters()
    # a model without dense layers needs none, and one with some gets a width from a model that has none
    assert PRESETS["olmoe-1b-7b"].at_dimensions(big).dense_intermediate == 0
    wide = PRESETS["qwen3-235b-a22b"]
    assert small.at_dimensions(wide).dense_intermediate == wide.top_k * wide.intermediate


def test_models_with_dense_layers_make_them_about_as_wide_as_what_a_token_uses_in_a_moe_layer():
    for name in ("deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "glm-4.5"):
        spec = PRESETS[name]
        used = spec.top_k * spec.intermediate + spec.shared_intermediate
        assert abs(spec.dense_intermediate / used - 1) < 0.12, name


def test_a_spec_survives_json():
    for spec in PRESETS.values():
        assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_nonsense_is_refused():
    good = PRESETS["mixtral-8x7b"].to_dict()
    for change, says in [
        ({"top_k": 9}, "more than its 8 experts"),
        ({"layer_ids": (3, 1)}, "ascending"),
        ({"layer_ids": (99,)}, "must lie in"),
        ({"groups": 3}, "do not divide"),
        ({"hidden": 0}, "at least 1"),
        ({"colour": "red"}, "unknown keys"),
        ({"layer_ids": "ab"}, "invalid literal"),
        ({"group_limit": 2}, "group_limit 2 is more than its 1 group"),
        ({"vocab": -1}, "vocab must be at least 0"),
        ({"shared_experts": -1}, "shared_experts must be at least 0"),
        ({"attention": {"heads": 0, "kv_heads": 1, "head_dim": 64}}, "attention: heads must be at least 1"),
        ({"attention": {"heads": 8, "kv_heads": 1, "head_dim": 64, "kv_rank": -1}}, "kv_rank must be at least 0"),
    ]:
        with pytest.raises(InputError, match=says):
            ModelSpec.from_dict(good | change)
    with pytest.raises(UnknownName, match="did you mean 'deepseek-v3'"):
        ModelSpec.preset("deepseekv3")


def test_layers_that_a_trace_leaves_out_are_no_dense_layers() -> None:
    whole = ModelSpec.preset("deepseek-v3")
    part = layer_subset(layer_subset(whole, [0, 7, 20, 30]), [0, 2])
    assert (part.layers, part.moe_layers, part.dense_layers, part.left_out) == (2, 58, 3, 56)
    assert part.parameters() == whole.parameters()
    assert part.parameters(active=True) == whole.parameters(active=True)
    assert ModelSpec.from_dict(part.to_dict()).left_out == 56
    assert "left_out" not in whole.to_dict()
    with pytest.raises(InputError, match=r"left_out must lie in 0\.\.59"):
        dataclasses.replace(part, left_out=60)


def test_some_layers_of_a_model_need_the_memory_of_the_whole_and_no_more() -> None:
    cluster, whole = Cluster.preset("h100-4x8-rail"), ModelSpec.preset("deepseek-v3")
    part = layer_subset(whole, [0, 7, 20])
    check_memory(part, cluster, 9)
    assert np.array_equal(slots_that_fit(part, cluster), slots_that_fit(whole, cluster))


def test_an_fp8_model_keeps_only_embeddings_head_and_gates_in_bf16() -> None:
    spec = ModelSpec.preset("deepseek-r1")
    # 11.4 B weights of attention, 2.6 B of shared experts and 1.2 B of dense layers in fp8; 1.9 B of embeddings in bf16
    assert other_weights(spec) / 1e9 == pytest.approx(15.2 + 2 * 1.96, abs=0.2)
    check_memory(spec, Cluster.preset("h100-4x8-rail").restrict(range(16)), 16)  # two nodes of H100 serve it
    four_bits = dataclasses.replace(spec, weight_bytes=0.5)
    assert other_weights(four_bits) == other_weights(dataclasses.replace(spec, weight_bytes=2.0))


def test_what_does_not_fit_is_told_with_what_would() -> None:
    spec, node = ModelSpec.preset("qwen3-235b-a22b"), Cluster.preset("h100-1x8")
    with pytest.raises(Infeasible, match=r"16 slots of rank 0 .* 15 fit there, where 8 ranks need 16 each to hold 128"):
        check_memory(spec, node, 16)
    with pytest.raises(Infeasible, match="use at most 15 slots there"):
        check_memory(spec, Cluster.preset("h100-4x8-rail"), 16)
    uneven = dataclasses.replace(node, memory_bytes=np.array([80e9] * 7 + [40e9]))
    with pytest.raises(Infeasible, match=r"14 slots of rank 7 .* 5 fit there"):
        check_memory(spec, uneven, 14)
    check_memory(spec, uneven, np.tile([14] * 7 + [5], (94, 1)))
