"""No placement beats the bound: brute force over small layers, any placement over larger ones."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.base.arrays import Array
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import Placement
from moesim.solve import SOLVERS, Problem, bounds, solve
from moesim.solve.bounds import _longest, step_bound
from moesim.solve.coverage import _even_pairs, _side, most_served, uncovered_tokens
from moesim.solve.objective import score
from moesim.spec import FP8_BLOCK, ModelSpec
from moesim.trace import Trace
from moesim.trace.batching import Batches, make_batches
from tests.solve.conftest import tiny_cluster, tiny_spec, tiny_trace

MakeProblem = Callable[..., Problem]
TRANSPORTS = ["hierarchical", "direct", "rank-dedup", "allgather"]
relaxed = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(problem: Problem, placement: Placement) -> None:
    never_below(problem.batches, placement, problem.costs, problem.slots_per_rank, problem.policy)


def never_below(
    batches: Batches | tuple[Batches, ...], placement: Placement, costs: Costs, slots: int, policy: str = "nearest"
) -> float:
    """Return the score over the bound, after checking that nothing is below it."""
    found = score(batches, placement, costs, policy)
    bound = step_bound(batches, costs.cluster, costs, slots)
    assert (found.step_s >= bound.steps_s * (1 - 1e-9)).all()
    assert (found.layer_s.mean(axis=0) >= bound.layer_s * (1 - 1e-9)).all()
    assert (bound.layer_s >= np.maximum(bound.load_s, bound.traffic_s) * (1 - 1e-9)).all()
    assert bound.step_s > 0
    return found.mean_s / bound.step_s


@pytest.mark.parametrize("transport", TRANSPORTS)
@relaxed
@given(seed=st.integers(0, 10**6), tokens=st.sampled_from([16, 256, 4096]), skew=st.sampled_from([0.0, 1.0, 3.0]))
def test_random_placements_never_beat_the_bound(
    make_problem: MakeProblem, transport: str, seed: int, tokens: int, skew: float
) -> None:
    rng = np.random.default_rng(seed)
    nodes, each = [(1, 2), (2, 1), (2, 2), (3, 2)][seed % 4]
    experts = int(rng.integers(4, 12))
    slots = int(rng.integers(-(-experts // (nodes * each)), experts + 1))
    problem = make_problem(
        nodes, each, slots, tokens, seed, transport=transport, skew=skew, experts=experts,
        top_k=int(rng.integers(1, 4)), policy=["nearest", "hash", "uniform"][seed % 3], solver="random",
    )  # fmt: skip
    check(problem, Placement(SOLVERS.get("random")(problem), experts))
    check(problem, Placement(SOLVERS.get("eplb")(problem), experts))


def table_up_to(most: int, path: Path) -> Path:
    """Write a kernel table whose last row has so many tokens for an expert."""
    tokens = [16 * 4**power for power in range(8) if 16 * 4**power <= most]
    rows = [
        {"tokens_per_expert": m, "active_experts": a, "seconds": 1e-6 * a * max(m, 32)} for m in tokens for a in (1, 4)
    ]
    table = {"schema": 1, "kind": "moesim-kernel-table", "device": "H100-SXM", "dtype": "bf16", "hidden": 4096,
             "intermediate": 2048, "provenance": {}, "rows": rows}  # fmt: skip
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("solver", ["lpt", "moesim"])
def test_a_kernel_table_need_not_reach_to_all_tokens_on_one_expert(solver: str, tmp_path: Path) -> None:
    spec, cluster = tiny_spec(), tiny_cluster()
    trace = tiny_trace(spec, 4096)
    short, long = (table_up_to(most, tmp_path / f"{most}.json") for most in (4096, 1 << 18))
    plans = [
        solve(
            trace, cluster, slots_per_rank=3, solver=solver, tokens_per_rank=1024, jobs=1,
            costs=Costs.default(spec, cluster, compute=table), **({"effort": 1e5} if solver == "moesim" else {}),
        )
        for table in (short, long)
    ]  # fmt: skip
    # of 8192 picks no expert has more than 4096, so that where the table ends changes no score
    assert plans[0].score_s == pytest.approx(plans[1].score_s)
    assert 0.9 * plans[1].bound_s <= plans[0].bound_s <= plans[1].bound_s <= plans[0].score_s


@lru_cache
def preset(name: str) -> Cluster:
    return Cluster.preset(name)


GROUPS = {
    "one rank": ("h100-8x8-rail", (0,)),
    "one node": ("h100-8x8-rail", (0, 1, 2)),
    "two nodes": ("h100-8x8-rail", (0, 1, 8, 9)),
    "a rank a node": ("h100-8x8-rail", (0, 8, 16)),
    "unequal nodes": ("h100-8x8-rail", (0, 1, 2, 8)),
    "nodes without common rails": ("h100-8x8-rail", (0, 1, 8, 17)),
    "oversubscribed": ("h100-fat-tree-oversub", (0, 1, 8, 9, 16, 17)),
    "mesh": ("mi300x-4x8-rail", (0, 1, 2, 8, 9, 10)),
    "one NVLink domain": ("gb200-nvl72", (0, 1, 2, 3)),
}


def world(seed: int, ranks: str, tokens: int) -> tuple[Costs, Batches, int, np.random.Generator]:
    """Random costs, steps and slots on some ranks: topics, dropped picks, slower ranks, any compute model."""
    rng = np.random.default_rng(seed)
    name, chosen = GROUPS[ranks]
    cluster = preset(name).restrict(chosen)
    if rng.random() < 0.3:
        slower = rng.choice([1.0, 0.5, 0.8], size=cluster.ranks)
        cluster = dataclasses.replace(cluster, speed=slower, hbm_bandwidth=cluster.hbm_bandwidth * slower[::-1])
    experts, layers = int(rng.integers(2, 13)), int(rng.integers(1, 4))
    wide = int(rng.choice([128, 2048]))
    spec = ModelSpec(
        name="tiny", layer_ids=tuple(range(layers)), num_hidden_layers=layers, experts=experts,
        top_k=int(rng.integers(1, min(experts, 6) + 1)), hidden=int(rng.choice([256, 7168])), intermediate=wide,
        shared_experts=1, shared_intermediate=wide * int(rng.integers(0, 2)), weight_bytes=1.0,
        dispatch_bytes=FP8_BLOCK,
    )  # fmt: skip
    total = tokens * cluster.ranks
    topics = rng.normal(size=(4, layers, experts)) * rng.choice([0.0, 3.0])
    liking = topics[rng.integers(4, size=total)] + rng.gumbel(size=(total, layers, experts))
    routes = np.argsort(-liking, axis=2)[:, :, : spec.top_k].astype(np.int16)
    routes[rng.random(routes.shape) < rng.choice([0.0, 0.3])] = -1
    batches = make_batches(
        Trace(spec, routes=routes, request=np.arange(total) // 8), cluster.ranks, tokens_per_rank=tokens
    )
    transports = [*TRANSPORTS, "nvlink"] if cluster.nodes == 1 else TRANSPORTS
    costs = Costs.default(
        spec, cluster, transport=str(rng.choice(transports)), network=str(rng.choice(["bottleneck", "max-min"])),
        compute=str(rng.choice(["roofline", "roofline-masked", "roofline-cutlass"])),
        shared_expert="overlap" if rng.random() < 0.3 else "sequential",
    )  # fmt: skip
    return costs, batches, int(rng.integers(-(-experts // cluster.ranks), experts + 1)), rng


def filled(rng: np.random.Generator, layers: int, ranks: int, slots: int, experts: int) -> Array:
    """A placement that may crowd its experts on few ranks, and leave slots or whole ranks empty."""
    out = np.full((layers, ranks, slots), -1, np.int32)
    crowd, share = rng.random() < 0.4, rng.choice([0.0, 0.5, 1.0])
    for layer in out:
        held: list[set[int]] = [set() for _ in range(ranks)]
        for expert in rng.permutation(experts).tolist():
            free = [rank for rank in range(ranks) if len(held[rank]) < slots]
            held[free[0] if crowd else free[rng.integers(len(free))]].add(expert)
        for rank, own in enumerate(held):
            further = [e for e in rng.permutation(experts).tolist() if e not in own and rng.random() < share]
            own.update(further[: slots - len(own)])
            layer[rank, : len(own)] = sorted(own)
    return out


@pytest.mark.parametrize("ranks", GROUPS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**9), tokens=st.sampled_from([1, 4, 64, 512]))
def test_any_ranks_transports_networks_and_policies(ranks: str, seed: int, tokens: int) -> None:
    costs, batches, slots, rng = world(seed, ranks, tokens)
    spec = costs.spec
    for policy in ("nearest", str(rng.choice(["hash", "uniform", "random", "token-aware", "fewest-active"]))):
        experts = filled(rng, spec.layers, costs.cluster.ranks, slots, spec.experts)
        never_below(batches, Placement(experts, spec.experts), costs, slots, policy)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("tokens", [32, 2048])
def test_the_best_of_all_placements_does_not_beat_the_bound(
    make_problem: MakeProblem, transport: str, tokens: int
) -> None:
    problem = make_problem(2, 1, 3, tokens, layers=1, experts=4, transport=transport, solver="random")
    sets = [list(held) + [-1] * (3 - n) for n in range(4) for held in itertools.combinations(range(4), n)]
    tried = 0
    for first, second in itertools.product(sets, sets):
        if set(range(4)) <= {*first, *second}:
            check(problem, Placement(np.array([[first, second]]), 4))
            tried += 1
    assert tried == 3**4 - 31  # each expert on either rank or both, no rank with all four


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_searched_placements_with_a_rank_run_empty_do_not_beat_the_bound(
    make_problem: MakeProblem, transport: str
) -> None:
    problem = make_problem(2, 2, 4, 8192, experts=8, top_k=3, skew=1.0, transport=transport)
    plan = solve(
        problem.batches, problem.cluster, slots_per_rank=4, costs=problem.costs, deadline_s=1, jobs=1, rows=200
    )
    check(problem, plan.placement)
    for rank in range(4):
        spared = plan.placement.experts.copy()
        for layer in spared:
            others = np.delete(layer, rank, axis=0)
            layer[rank][np.isin(layer[rank], others)] = -1
        check(problem, Placement(spared, 8))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_experts_on_every_rank(make_problem: MakeProblem, transport: str) -> None:
    problem = make_problem(2, 2, 8, 4096, transport=transport, solver="contiguous")
    check(problem, Placement(np.broadcast_to(np.arange(8), (2, 4, 8)).astype(np.int32), 8))


@pytest.mark.parametrize(
    ("transport", "most"), [("hierarchical", 1.5), ("direct", 1.4), ("rank-dedup", 1.7), ("allgather", 1.4)]
)
def test_the_bound_is_not_far_below_a_searched_placement(
    make_problem: MakeProblem, transport: str, most: float
) -> None:
    problem = make_problem(2, 2, 3, 16384, experts=8, skew=0.5, transport=transport)
    plan = solve(
        problem.batches, problem.cluster, slots_per_rank=3, costs=problem.costs, deadline_s=1, jobs=1, rows=200
    )
    assert 1 <= plan.score_s / plan.bound_s < most


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_choice_of_experts_covers_more_tokens_than_the_bound_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, first = 6, int(rng.integers(1, 7))
    room = np.array([first, int(rng.integers(6 - first, 7))])
    liking = rng.gumbel(size=(40, experts)) + rng.choice([0, 2]) * rng.normal(size=experts)
    routes = np.argsort(-liking, axis=1)[:, :3].astype(np.int16)
    routes[rng.random(routes.shape) < 0.2] = -1
    node = np.array([0, 0, 1], np.int32)
    home = rng.integers(3, size=40).astype(np.int32)
    together, by_home = uncovered_tokens(routes[:, None], home, node, room, experts)
    sets = [list(itertools.combinations(range(experts), int(space))) for space in room]
    leave = [[~(np.isin(routes, kept) | (routes < 0)).all(axis=1) for kept in of_node] for of_node in sets]
    for rank in range(3):
        assert min(out[home == rank].sum() for out in leave[node[rank]]) >= by_home[0, rank]
    least = min(
        leave[0][one][node[home] == 0].sum() + leave[1][other][node[home] == 1].sum()
        for one, other in itertools.product(range(len(sets[0])), range(len(sets[1])))
        if len({*sets[0][one], *sets[1][other]}) == experts
    )
    assert least >= together[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_places_that_hold_every_expert_serve_no_more_than_the_bound_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = rng.integers(0, 9, size=(3, 4)) * rng.integers(1, 5, size=4)
    room = rng.integers(1, 4, size=3)
    room[0] = max(room[0], 4 - room[1] - room[2])
    best = max(
        sum(value[place, list(kept)].sum() for place, kept in enumerate(held))
        for held in itertools.product(*(itertools.combinations(range(4), int(space)) for space in room))
        if len(set().union(*held)) == 4
    )
    assert best <= most_served(value, room) <= np.sort(value, axis=1)[:, ::-1].sum()


def test_a_single_rank_is_at_its_bound(make_problem: MakeProblem) -> None:
    problem = make_problem(1, 1, 8, 512, solver="contiguous")
    placement = Placement(SOLVERS.get("contiguous")(problem), problem.experts)
    found = score(problem.batches, placement, problem.costs)
    bound = step_bound(problem.batches, problem.cluster, problem.costs, 8)
    assert found.mean_s < 1.35 * bound.step_s


def test_layers_chain_by_the_first_rank_or_the_last_whichever_takes_longer() -> None:
    early, alone, late, load = (np.array(part, float) for part in ([3, 3], [5, 5], [4, 1], [1, 2]))
    # first: 3, last: 5; then first: max(3 + 3, 5 + 2) and last: max(7, 3 + 5, 5 + 1)
    assert _longest(early, alone, late, load) == 8


@given(seed=st.integers(0, 99), experts=st.integers(2, 12), tokens=st.integers(0, 60))
def test_the_heaviest_partners_of_an_expert_are_those_of_a_plain_sort(seed: int, experts: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    routes = rng.random((tokens, experts)).argsort(axis=1)[:, : min(4, experts)].astype(np.int16)
    routes[rng.random(routes.shape) < 0.3] = -1
    pairs = _even_pairs(routes, np.arange(tokens), experts, 3)
    assert np.array_equal(pairs, pairs.T)
    alone = pairs.diagonal()
    for room in range(1, experts + 1):
        heaviest = -np.sort(-(pairs - np.diag(alone)), axis=1)
        assert np.array_equal(_side(pairs, room), alone + heaviest[:, : room - 1].sum(axis=1) / 2)


def test_solvers_of_a_comparison_have_one_bound_between_them(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem()
    made = []
    real = bounds._bound
    monkeypatch.setattr(bounds, "_bound", lambda *given_: made.append(given_) or real(*given_))
    for solver in ("lpt", "eplb", "contiguous"):
        solve(problem.batches, problem.cluster, slots_per_rank=3, solver=solver, costs=problem.costs)
    assert len(made) == 1
    # other slots, other steps and other costs have bounds of their own
    fewer = problem.batches[:1]
    others = Costs.default(problem.spec, problem.cluster, transport="direct")
    for steps, costs, slots in (
        (problem.batches, problem.costs, 4), (fewer, problem.costs, 3), (problem.batches, others, 3),
    ):  # fmt: skip
        found = step_bound(steps, problem.cluster, costs, slots)
        assert found.step_s == real(steps, costs, slots, 2).step_s
    assert len(made) == 4
