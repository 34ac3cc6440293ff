"""The Triton kernels against float64: interpreted on the CPU, compiled where there is a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: pip install 'moesim[gpu]'")

from moesim.moe.config import MoeConfig
from moesim.moe.experts import Experts
from moesim.moe.kernels import fp8, gemm, move, tiles, warm
from moesim.moe.kernels.grouping import HEIGHTS, SMALLEST, group
from moesim.moe.kernels.mlp import experts as by_kernels
from moesim.moe.kernels.tiles import Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# relative to the norm: bfloat16 keeps 8 bits, fp8 (e4m3) 4
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# the interpreter widens bfloat16 before the product, so that float32 says it all; a device has other instructions
TYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]
TILES = (
    Tile(16, 16, 16),
    Tile(32, 16, 32, group=2),
    Tile(64, 32, 16, persistent=True),
    Tile(128, 32, 32, box=True),
    Tile(16, 32, 64, box=True, persistent=True, group=1),
)


def error(got: torch.Tensor, expected: torch.Tensor, least: float = 1e-30) -> float:
    """Distance relative to the norm of what is expected, at least `least`; NaN where anything is."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=least))


def swiglu(x, gate_up, down):
    gate, up = (x @ gate_up).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up) @ down


def reference(x, chosen, weights, gate_up, down):
    """One token and one expert at a time, in the dtype of its arguments."""
    rows = []
    for token in range(len(x)):
        parts = [
            weights[token, k] * swiglu(x[token], gate_up[e], down[e])
            for k, e in enumerate(chosen[token].tolist())
            if e >= 0
        ]
        rows.append(torch.stack(parts).sum(0) if parts else torch.zeros_like(x[token]))
    return torch.stack(rows) if rows else torch.zeros_like(x)


def draw(seed, tokens, experts, top_k, hidden, intermediate, dtype, *, pool=None, dropped=0.0):
    """Inputs of a layer; what is returned in `dtype` is exact in float64, so that rounding of inputs does not count."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool = min(experts, pool or experts)
    chosen = np.array([rng.permutation(pool)[:top_k] for _ in range(tokens)]).reshape(tokens, -1)
    chosen[rng.random(chosen.shape) < dropped] = -1
    x = torch.randn(tokens, hidden, generator=generator)
    weights = torch.rand(tokens, chosen.shape[1], generator=generator)
    gate_up = torch.randn(experts, hidden, 2 * intermediate, generator=generator) / hidden**0.5
    down = torch.randn(experts, intermediate, hidden, generator=generator) / intermediate**0.5
    cast = [t.to(DEVICE, dtype) for t in (x, gate_up, down)]
    return cast[0], torch.tensor(chosen, device=DEVICE), weights.to(DEVICE), cast[1], cast[2]


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that kernels do not write holds NaN, not the zeros that luck often gives."""
    plain = torch.empty

    def empty(*args, **kwargs):
        made = plain(*args, **kwargs)
        if made.dtype.is_floating_point and made.dtype.itemsize > 1:
            return made.fill_(torch.nan)
        return made.fill_(99) if made.dtype.itemsize > 1 else made

    def empty_like(other, **kwargs):
        return empty(other.shape, dtype=kwargs.get("dtype", other.dtype), device=other.device)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)


@FEW
@given(tokens=st.integers(0, 150), experts=st.integers(1, 20), top_k=st.integers(1, 4), seed=st.integers(0, 99))
def test_grouping_sorts_picks_by_expert_and_keeps_their_order(tokens, experts, top_k, seed):
    rng = np.random.default_rng(seed)
    chosen = rng.integers(-1, experts, (tokens, top_k))
    got = group(torch.tensor(chosen, device=DEVICE), experts)
    flat = chosen.ravel()
    used = int((flat >= 0).sum())
    expected = np.argsort(np.where(flat < 0, experts, flat), kind="stable")[:used]
    assert got.order[:used].tolist() == expected.tolist()
    assert got.offsets.tolist() == [0, *np.cumsum(np.bincount(flat[flat >= 0], minlength=experts))]
    place = got.place.cpu().numpy()
    assert (place[flat < 0] == -1).all()
    assert place[expected].tolist() == list(range(used))


@FEW
@given(tokens=st.integers(1, 300), experts=st.integers(1, 9), pool=st.integers(1, 9), seed=st.integers(0, 99))
def test_blocks_of_every_height_cover_every_row_once(tokens, experts, pool, seed):
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, min(pool, experts), (tokens, 1))
    got = group(torch.tensor(chosen, device=DEVICE), experts)
    offsets = got.offsets.tolist()
    for level in range(HEIGHTS):
        height, blocks = SMALLEST << level, int(got.totals[level])
        assert blocks <= got.most_blocks(height)
        rows = list[int]()
        for block in range(blocks):
            expert, first = int(got.expert_of[level, block]), int(got.row_of[level, block])
            rows += range(first, min(first + height, offsets[expert + 1]))
            assert offsets[expert] <= first < offsets[expert + 1]
        assert rows == list(range(tokens))


@FEW
@given(
    tokens=st.integers(1, 60), experts=st.integers(1, 7), top_k=st.integers(1, 3), hidden=st.sampled_from([16, 40, 64]),
    intermediate=st.sampled_from([8, 24, 48]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    few=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_experts_equal_float64(poisoned, tokens, experts, top_k, hidden, intermediate, dtype, few, seed):
    pool = max(1, experts // 2) if few else experts
    inputs = draw(seed, tokens, experts, min(top_k, pool), hidden, intermediate, dtype, pool=pool, dropped=0.1)
    with torch.no_grad():
        got = by_kernels(*inputs)
    expected = reference(*(t if t.dtype == torch.int64 else t.double() for t in inputs))
    assert error(got, expected) < LIMIT[dtype]
    assert got.dtype == dtype


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "pool", "dropped"),
    [
        (1, 8, 3, 8, 0), (1, 1, 1, 1, 0), (19, 8, 1, 8, 0), (20, 16, 2, 2, 0), (9, 4, 4, 4, 0), (14, 5, 2, 5, 0.5),
        (5, 3, 2, 3, 1),
    ],
    ids=["one token", "one expert", "top-1", "all on two experts", "all experts", "half dropped", "all dropped"],
)  # fmt: skip
def test_gradients_equal_float64(poisoned, tokens, experts, top_k, pool, dropped, dtype):
    inputs = draw(3, tokens, experts, top_k, 40, 24, dtype, pool=pool, dropped=dropped)
    slope = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def run(function, cast):
        x, chosen, weights, gate_up, down = inputs
        leaves = [cast(t).clone().requires_grad_() for t in (x, weights, gate_up, down)]
        out = function(leaves[0], chosen, leaves[1], leaves[2], leaves[3])
        (out * slope.to(out.dtype)).sum().backward()
        return [out.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]

    names = ("output", "tokens", "gate weights", "gate and up", "down")
    for name, got, expected in zip(
        names, run(by_kernels, lambda t: t), run(differentiable, lambda t: t.double()), strict=True
    ):
        # the gradient of a gate weight is a dot product that may cancel
        least = float(slope.norm()) if name == "gate weights" else 1e-30
        assert error(got, expected, least) < 2 * LIMIT[dtype], name


def differentiable(x, chosen, weights, gate_up, down):
    out = torch.zeros_like(x)
    for expert in range(len(down)):
        token, k = torch.nonzero(chosen == expert, as_tuple=True)
        out = out.index_add(0, token, weights[token, k, None] * swiglu(x[token], gate_up[expert], down[expert]))
    return out


def test_an_expert_without_tokens_gets_a_gradient_of_zeros(poisoned):
    x, _, weights, gate_up, down = draw(0, 6, 5, 1, 16, 8, torch.float32)
    down.requires_grad_()
    by_kernels(x, torch.full((6, 1), 3, device=DEVICE), weights, gate_up, down).sum().backward()
    assert (down.grad.abs().sum((1, 2)) > 0).tolist() == [False, False, False, True, False]


def test_no_token_at_all_gives_none_and_keeps_the_graph_whole():
    x, _, _, gate_up, down = draw(0, 1, 4, 1, 16, 8, torch.float32)
    gate_up.requires_grad_()
    nobody = torch.zeros((0, 2), dtype=torch.int64, device=DEVICE)
    out = by_kernels(x[:0], nobody, nobody.float(), gate_up, down)
    assert out.shape == (0, 16)
    out.sum().backward()
    assert not gate_up.grad.any()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("deep", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_kind_of_tile_gives_the_product(poisoned, tile, deep, dtype):
    if tile.box and DEVICE == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this device has no tensor memory accelerator")
    x, chosen, _, gate_up, _ = draw(7, 70, 5, 2, 32, 24, dtype, pool=3)
    grouping = group(chosen, 5)
    rows = move.permute(x, grouping)
    weights = gate_up.transpose(1, 2).contiguous() if deep else gate_up
    owner = chosen.flatten()[grouping.order.long()]
    expected = torch.einsum("ph,phn->pn", rows.double(), gate_up.double()[owner])
    got, _ = gemm.grouped(rows, weights, grouping, deep=deep, tile=tile)
    assert error(got, expected) < LIMIT[dtype]
    gate, up = expected.chunk(2, -1)
    fused, before = gemm.grouped(rows, weights, grouping, swiglu=True, keep=True, deep=deep, tile=tile)
    assert error(fused, gate * torch.sigmoid(gate) * up) < LIMIT[dtype]
    assert error(before, expected) < LIMIT[dtype]


@pytest.mark.parametrize("tile", [Tile(16, 16, 16), Tile(32, 32, 16, persistent=True)], ids=str)
def test_tokens_can_be_taken_where_they_lie(tile):
    x, chosen, _, gate_up, _ = draw(2, 30, 4, 3, 32, 16, torch.float32)
    grouping = group(chosen, 4)
    gathered, _ = gemm.grouped(x, gate_up, grouping, gather=True, tile=tile)
    copied, _ = gemm.grouped(move.permute(x, grouping), gate_up, grouping, tile=tile)
    assert torch.equal(gathered, copied)


@pytest.mark.parametrize("tile", [Tile(16, 16, 16), Tile(32, 32, 64, group=2)], ids=str)
def test_every_tile_gives_the_gradient_of_the_weights(tile):
    x, chosen, _, _, _ = draw(4, 70, 6, 2, 40, 24, torch.float32, pool=4)
    grouping = group(chosen, 6)
    rows, slope = move.permute(x, grouping), torch.randn(140, 24, device=DEVICE)
    owner = chosen.flatten()[grouping.order.long()]
    expected = torch.stack([rows[owner == e].double().T @ slope[owner == e].double() for e in range(6)])
    assert error(gemm.weight_gradient(rows, slope, grouping, tile=tile), expected) < 1e-5


def test_the_same_inputs_give_the_same_bits():
    inputs = draw(9, 64, 8, 3, 32, 24, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(by_kernels(*inputs), by_kernels(*inputs))


def test_the_layer_gives_the_same_numbers_by_kernels_and_by_pytorch():
    layer = Experts(MoeConfig(hidden=32, heads=2, experts=8, top_k=3, intermediate=16))
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4
    x, chosen, weights, _, _ = draw(5, 50, 8, 3, 32, 16, torch.float32, dropped=0.2)
    on_cpu = [t.cpu() for t in (x, chosen, weights)]
    by_pytorch = layer(*on_cpu)
    layer.to(DEVICE)
    routed = by_kernels(x, chosen, weights, layer.gate_up, layer.down)
    assert error((layer.shared(x) + routed).detach().cpu(), by_pytorch.detach()) < 1e-6


@pytest.mark.parametrize(("hidden", "intermediate"), [(128, 128), (256, 136), (200, 64)])
@pytest.mark.parametrize("tile", [None, Tile(32, 64, 128, persistent=True)], ids=str)
def test_fp8_products_equal_those_of_the_quantised_numbers(poisoned, hidden, intermediate, tile):
    if DEVICE == "cuda" and not fp8.supported(torch.device("cuda")):
        pytest.skip("this device has no fp8 tensor cores")
    x, chosen, _, gate_up, down = draw(6, 40, 4, 2, hidden, intermediate, torch.float32)
    grouping = group(chosen, 4)
    packed = fp8.to_fp8(gate_up, down)
    rows, scales = move.quantise_rows(move.permute(x, grouping), grouping.offsets[-1:])
    got = fp8.grouped_fp8(rows, scales, packed.gate_up,
                          packed.gate_up_scale, grouping, dtype=torch.float32, tile=tile)  # fmt: skip
    owner = chosen.flatten()[grouping.order.long()]
    wide = widened(packed.gate_up, packed.gate_up_scale)[owner]
    gate, up = torch.einsum("ph,panh->apn", widened(rows[:, None], scales[:, None], 1)[:, 0], wide)
    assert error(got, gate * torch.sigmoid(gate) * up) < 1e-5


def widened(x, scale, tall=128):
    """What fp8 numbers stand for, in float64."""
    whole = scale.double().repeat_interleave(tall, -2).repeat_interleave(128, -1)
    return x.float().double() * whole[..., : x.shape[-2], : x.shape[-1]]


def test_experts_in_fp8_are_close_to_float64():
    if DEVICE == "cuda" and not fp8.supported(torch.device("cuda")):
        pytest.skip("this device has no fp8 tensor cores")
    inputs = draw(8, 30, 4, 2, 128, 128, torch.float32)
    x, chosen, weights, gate_up, down = inputs
    got = fp8.experts_fp8(x, group(chosen, 4), weights, fp8.to_fp8(gate_up, down))
    expected = reference(*(t if t.dtype == torch.int64 else t.double() for t in inputs))
    # e4m3 has 3 bits behind the point: about 2.6 % of noise in each of the two factors of each of three products
    assert 0.005 < error(got, expected) < 0.14


def test_quantising_rounds_as_pytorch_does():
    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    got, scales = move.quantise_rows(x, torch.tensor([20], dtype=torch.int32, device=DEVICE))
    expected = (x.view(20, 2, 128) / scales[..., None]).to(torch.float8_e4m3fn).view(20, 256)
    # the interpreter errs where rounding up reaches the next power of two
    least = 1.0 if DEVICE == "cuda" else 0.97
    assert (got.float() == expected.float()).float().mean() >= least
    assert torch.equal(scales, x.view(20, 2, 128).abs().amax(-1) / 448)


def test_quantising_zeros_gives_zeros():
    out, scales = move.quantise_rows(
        torch.zeros(2, 128, device=DEVICE), torch.tensor([2], dtype=torch.int32, device=DEVICE)
    )
    assert not out.float().any()
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize("kind", ["gate-up, gathered", "to inputs", "to weights"])
def test_warming_compiles_what_it_says(kind):
    chosen = next(job for job in warm.jobs(with_fp8=True, with_boxes=True) if job.kind == kind)
    assert warm.build(chosen._replace(tile=Tile(16, 64, 64)), DEVICE) > 0


def test_warming_covers_every_tile_of_the_tuner():
    found = list(warm.jobs(with_fp8=True, with_boxes=True))
    assert {job.tile for job in found if job.kind == "down"} == {*tiles.FEW, *tiles.MANY, *tiles.EXACT}
    assert {job.tile for job in found if job.kind == "to weights"} == set(tiles.GRADIENT)
    assert {job.tile for job in found if job.kind == "fp8"} == set(tiles.FP8_TILES)


def test_tiles_that_do_not_fit_the_problem_are_left_out():
    configs = [tile.config(gemm._NAMES) for tile in (*tiles.FEW, *tiles.MANY, *tiles.EXACT)]
    decode = tiles.prune(configs, {"ROWS": 4, "N": 4096, "SWIGLU": True})
    prefill = tiles.prune(configs, {"ROWS": 2048, "N": 4096, "SWIGLU": False})
    assert {config.kwargs["BLOCK_M"] for config in decode} == {16}
    assert {config.kwargs["BLOCK_M"] for config in prefill} == {128}
    # without a device that has the copy engine nothing uses it
    assert not any(config.kwargs["BOX"] for config in decode + prefill)
    assert all(tiles.prune(configs, {"ROWS": rows, "N": 48}) for rows in (1, 8, 64, 300, 4096))
