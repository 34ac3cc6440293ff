"""Roofline of experts, shared expert and attention: bounds, tiles, weight reads, and where skew is faster."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.costs.constants import HBM_SHARE, LAUNCH_S, family
from moesim.costs.roofline import Device, gemm_s, roofline, together, uses_fp8
from moesim.spec import ModelSpec
from moesim.validate.machines import machine

from .worlds import cluster, preset

V3 = ModelSpec.preset("deepseek-v3")
NODE = cluster(1, 8)
COSTS = Costs.default(V3, NODE)


def experts_s(tokens_per_slot: list[float] | Array, costs: Costs = COSTS) -> float:
    """Seconds of rank 0 when its slots hold these tokens; the other ranks are idle."""
    slots = np.zeros((1, costs.cluster.ranks, len(tokens_per_slot)))
    slots[0, 0] = tokens_per_slot
    return float(costs.experts_s(slots)[0, 0])


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=16))
def test_never_faster_than_arithmetic_at_peak_or_weights_at_full_bandwidth(tokens: list[int]):
    seconds = experts_s(tokens)
    assert seconds >= sum(tokens) * V3.expert_flops / NODE.flops_fp8[0]
    assert seconds >= np.count_nonzero(tokens) * V3.expert_bytes / NODE.hbm_bandwidth[0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 500))
def test_more_tokens_never_take_less(tokens: list[int], slot: int, more: int):
    fuller = list(tokens)
    fuller[slot % len(tokens)] += more
    assert experts_s(fuller) >= experts_s(tokens)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=2, max_size=8), st.randoms())
def test_the_order_of_slots_does_not_matter(tokens: list[int], random):
    mixed = list(tokens)
    random.shuffle(mixed)
    assert experts_s(mixed) == pytest.approx(experts_s(tokens), rel=1e-12)


def test_skew_is_faster_than_balance_at_small_batch_and_slower_at_large():
    # 8 tokens over 8 experts read eight experts' weights; the same tokens on two experts read two
    assert experts_s([1] * 8) > 2 * experts_s([4, 4] + [0] * 6)
    # the busiest rank of a large batch is bound by arithmetic: twice the tokens, nearly twice the time
    assert experts_s([8192] * 8) / experts_s([4096] * 8) == pytest.approx(2.0, rel=0.05)


def test_few_tokens_cost_what_the_weights_cost():
    weights = 8 * V3.expert_bytes / (NODE.hbm_bandwidth[0] * HBM_SHARE.value)
    assert experts_s([1] * 8) == pytest.approx(weights + 5 * LAUNCH_S.value, rel=0.02)


def test_an_idle_rank_still_launches_its_kernels():
    assert experts_s([0] * 8) == 5 * LAUNCH_S.value


def test_time_rises_in_steps_of_tiles_and_waves():
    device = Device.of(NODE, fp8=True)

    def gemm(tokens: int) -> float:
        return float(gemm_s(np.array([[tokens]]), device, 4096, 7168)[0])

    assert gemm(1) == gemm(64) < gemm(65 + 512)
    # 32 columns of 128: four rows of tiles fill 128 of 132 SMs, a fifth starts a second wave
    assert gemm(512) < gemm(513)


def test_speed_dtype_and_device_count():
    slow = dataclasses.replace(NODE, speed=np.full(8, 0.5))
    assert experts_s([512] * 4, Costs.default(V3, slow)) == pytest.approx(2 * experts_s([512] * 4))
    wide = dataclasses.replace(V3, weight_bytes=2.0, dispatch_bytes=2.0)
    assert experts_s([4096] * 4, Costs.default(wide, NODE)) > 1.8 * experts_s([4096] * 4)
    oss = ModelSpec.preset("gpt-oss-120b")
    assert uses_fp8(V3)
    # four-bit weights meet bf16 tokens: they are widened, and compute in bf16
    assert not uses_fp8(oss)
    assert "arithmetic in bf16" in Costs.default(oss, NODE).notes[0]
    assert (family("NVIDIA H200"), family("GB200"), family("TPU")) == ("H200", "GB200", "")


@pytest.mark.parametrize("of", [preset("a100-4x8-rail").restrict([0]), machine("a100", 1, 1)])
def test_a_device_without_fp8_tensor_cores_multiplies_at_its_bf16_rate_and_says_so(of: Cluster):
    model = roofline(V3, of)
    assert (model.device.flops == Device.of(of, fp8=False).flops).all()
    assert any("no fp8 tensor cores" in note for note in model.notes)
    assert "arithmetic in bf16" in model.notes[0]


def test_a_device_with_fp8_tensor_cores_uses_them():
    model = roofline(V3, NODE)
    assert not any("no fp8" in note for note in model.notes)
    assert "arithmetic in fp8" in model.notes[0]


def test_an_unknown_device_is_named():
    odd = dataclasses.replace(NODE, device=("X1",) * 8)
    assert any("X1: number of SMs not known" in note for note in Costs.default(V3, odd).notes)


def test_shared_expert_is_a_dense_block_that_every_token_visits():
    tokens = np.array([0, 64, 1024, 4096, 0, 0, 0, 0.0])
    seconds = COSTS.shared_s(tokens)
    assert seconds.shape == (8,)
    assert seconds[0] < seconds[1] < seconds[2] < seconds[3]
    # no gather and scatter around it
    assert seconds[3] < experts_s([4096])
    assert not COSTS_WITHOUT_SHARED.shared_s(tokens).any()


COSTS_WITHOUT_SHARED = Costs.default(ModelSpec.preset("qwen3-30b-a3b"), NODE)


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 8192), st.booleans())
def test_attention_grows_with_tokens_and_context(tokens: int, context: int, decode: bool):
    def seconds(n: float, positions: float) -> float:
        return float(COSTS.attention_s(np.full(8, n), np.full(8, n * positions), decode)[0])

    assert seconds(tokens, context) <= seconds(tokens + 1, context)
    assert seconds(tokens, context) <= seconds(tokens, context + 1)
    cache = tokens * context * V3.attention.cache_elements() * 2 if decode else 0
    assert seconds(tokens, context) >= cache / NODE.hbm_bandwidth[0]


def test_decode_attention_of_grouped_queries_is_bound_by_its_cache():
    qwen = ModelSpec.preset("qwen3-30b-a3b")
    tokens = np.full(8, 128.0)
    with_cache = COSTS_WITHOUT_SHARED.attention_s(tokens, tokens * 8192, True)[0]
    without = COSTS_WITHOUT_SHARED.attention_s(tokens, tokens * 0, True)[0]
    bytes_ = 128 * 8192 * 2 * qwen.attention.kv_heads * qwen.attention.head_dim * 2
    assert with_cache - without == pytest.approx(bytes_ / (3.35e12 * HBM_SHARE.value))


def test_a_model_without_known_attention_prices_its_gate_and_says_so():
    bare = Costs.default(dataclasses.replace(V3, attention=None), NODE)
    seconds = bare.attention_s(np.full(8, 128.0), np.full(8, 1e5), True)
    assert 0 < seconds[0] < COSTS.attention_s(np.full(8, 128.0), np.full(8, 1e5), True)[0]
    assert any("attention of deepseek-v3 is not known" in note for note in bare.notes)


def test_leading_axes_are_independent():
    rng = np.random.default_rng(0)
    slots = rng.integers(0, 500, (3, 8, 4)).astype(float)
    np.testing.assert_array_equal(COSTS.experts_s(slots)[1], COSTS.experts_s(slots[1]))


def test_grouped_gemm_reproduces_the_published_rows(shared_data: Path):
    device = Device.of(preset("h100-1x8"), fp8=True)
    errors = []
    with (shared_data / "measurements" / "deepgemm_readme.csv").open() as file:
        for row in csv.DictReader(file):
            if not row["kernel"].startswith("m_grouped") or row["role"] == "superseded":
                continue
            groups, m, n, k = (int(row[name]) for name in ("groups", "m_per_group", "n", "k"))
            arithmetic = gemm_s(np.full((1, groups), m), device, n, k)[0]
            memory = (groups * n * k + groups * m * (k + 2 * n)) / device.hbm[0]
            errors.append(together(arithmetic, memory) * 1e6 / float(row["derived_latency_us"]) - 1)
    # reached: 8.3 % on average and 17 % at most, over rows that were not used for any constant; without launches
    assert np.abs(errors).mean() < 0.10
    assert np.abs(errors).max() < 0.20


def test_masked_and_contiguous_grouped_gemm_differ_in_padding_and_moves() -> None:
    one = Cluster.preset("h100-1x8").restrict([0])
    spec = ModelSpec.preset("deepseek-v3")

    def seconds(name: str, loads: list[float]) -> float:
        return float(Costs.default(spec, one, compute=name).experts_s(np.array([loads]))[0])

    # contiguous blocks are padded to 128 rows: 129 tokens cost what 256 do, one more row moved apart
    assert seconds("roofline-contiguous", [1000.0 + 129.0] * 8) == pytest.approx(
        seconds("roofline-contiguous", [1000.0 + 152.0] * 8), rel=0.02
    )
    # low-latency dispatch fills the slots itself: nothing is scattered or gathered
    assert seconds("roofline-masked", [1024.0] * 8) < seconds("roofline", [1024.0] * 8)
    assert seconds("roofline-masked", [1.0] * 8) == pytest.approx(seconds("roofline", [1.0] * 8), rel=0.02)
