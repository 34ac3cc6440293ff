"""The judges: every solver, network model, transport, dispatch policy and file format must pass its own.

Built-in plug-ins face them in this project's tests; a package that registers one calls the same function in its
own tests:

```python
from moesim.testing import check_solver
from my_package import my_solver

def test_my_solver():
    check_solver(my_solver)
```

A judge raises :class:`Verdict`, an AssertionError that says which law was broken, where, and by how much.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, MoesimError
from moesim.cluster import Cluster
from moesim.costs import TRANSPORTS, Costs
from moesim.placement import EMPTY, Flow, Placement, dispatch
from moesim.placement.policies import Policy
from moesim.solve.problem import Problem, complete_options
from moesim.spec import ModelSpec
from moesim.trace import Batches, make_batches
from moesim.trace.synthetic import router

__all__ = ["Verdict", "check_format", "check_network", "check_policy", "check_solver", "check_transport"]

_ROUNDING: Final = 1e-9


class Verdict(AssertionError):
    """A law is broken."""


def check_solver(
    solver: Any, *, options: dict[str, Any] | None = None, deadline_s: float = 60.0, repeatable: bool = True
) -> None:
    """Judge a solver: ``solver(problem) -> int [layers, ranks, slots]``.

    On problems without room to spare, with redundant slots, with empty slots and with nodes: every expert is placed in
    every layer, none twice on a rank, shapes and ids are right, the same seed gives the same answer, and nothing that
    was given is changed. A solver may refuse a problem with a MoesimError, but not all of them.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    solved = 0
    for case, problem in _problems(deadline_s):
        problem = replace(problem, options=complete_options(solver, "solver", options or {}))
        before = problem.loads.copy()
        try:
            experts = np.asarray(solver(replace(problem, notes=[])))
        except MoesimError:
            continue
        solved += 1
        shape = (problem.layers, problem.ranks, problem.slots_per_rank)
        _law(experts.dtype.kind in "iu", f"{case}: expected whole numbers, got {experts.dtype}")
        _law(experts.shape == shape, f"{case}: expected [layers, ranks, slots] {shape}, got {experts.shape}")
        try:
            Placement(experts, problem.experts)
        except InputError as error:
            raise Verdict(f"{case}: {error}") from None
        if repeatable:
            again = np.asarray(solver(replace(problem, notes=[])))
            _law(np.array_equal(experts, again), f"{case}: the same problem and seed gave another placement")
        _law(np.array_equal(before, problem.loads), f"{case}: the solver changed the loads it was given")
    _law(solved > 0, "the solver refused every problem")


def check_network(network: Any) -> None:
    """Judge a network model: ``network(transfer, cluster) -> Timing``.

    Seconds are finite and not negative; no rank is done before the floor; links carry exactly the bytes of their
    paths; nothing is faster than the busiest link alone; more bandwidth everywhere is never slower, more bytes never
    faster; the same transfer gives the same timing.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    for name in ("direct", "hierarchical"):
        for case, cluster, spec, flow in _flows():
            case = f"{case}, transport {name}"
            transfer = TRANSPORTS.get(name)(flow, cluster, spec, "dispatch")
            timing = network(transfer, cluster)
            arrive, own = timing.arrive_s, timing.own_s
            for what, array in (("arrive_s", arrive), ("own_s", own), ("link_time_s", timing.link_time_s)):
                _law(bool(np.isfinite(array).all() and (array >= 0).all()), f"{case}: {what} must be finite, >= 0")
            expected = sum(cluster.paths.link_bytes(leg) for leg in transfer.legs)
            _near(timing.link_bytes, expected, f"{case}: links carry other bytes than the paths of the transfer")
            _near(timing.link_time_s, expected / cluster.link_bandwidth, f"{case}: link_time_s is not bytes/bandwidth")
            loaded = timing.link_bytes.max(axis=1) > 0
            slowest = timing.link_time_s.max(axis=1)
            _least(timing.makespan_s[loaded], slowest[loaded], f"{case}: faster than its busiest link alone")
            _least(timing.makespan_s, timing.floor_s, f"{case}: faster than an empty message")
            wider = replace(cluster, link_bandwidth=cluster.link_bandwidth * 2)
            _least(timing.makespan_s, network(transfer, wider).makespan_s, f"{case}: twice the bandwidth is slower")
            more = replace(
                transfer,
                legs=tuple(leg * 2 for leg in transfer.legs),
                own_bytes=transfer.own_bytes * 2,
                out_s=tuple(part * 2 for part in transfer.out_s),
                in_s=tuple(part * 2 for part in transfer.in_s),
            )
            _least(network(more, cluster).makespan_s, timing.makespan_s, f"{case}: twice the bytes are faster")
            _near(network(transfer, cluster).arrive_s, arrive, f"{case}: the same transfer gave another timing", 0.0)


def check_transport(transport: Any) -> None:
    """Judge a transport: ``transport(flow, cluster, spec, direction) -> Transfer``.

    Every token reaches every node and every rank it must go to; combine goes the way of dispatch backwards; no
    traffic where there are no tokens. A transport may refuse a cluster with a MoesimError, but not all of them.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    carried = 0
    for case, cluster, spec, flow in _flows():
        try:
            there = transport(flow, cluster, spec, "dispatch")
            back = transport(flow, cluster, spec, "combine")
        except MoesimError:
            continue
        carried += 1
        for way, transfer in (("dispatch", there), ("combine", back)):
            for leg in transfer.legs:
                _law(bool(np.isfinite(leg).all() and (leg >= 0).all()), f"{case}: {way}: bytes must be finite, >= 0")
        away = flow.rank_copies * ~np.eye(cluster.ranks, dtype=bool) > 0
        _law(bool((there.senders | ~away).all()), f"{case}: a rank with tokens for another is not among its senders")
        backwards = there.senders.transpose(0, 2, 1)
        _law(bool((back.senders | ~(away.transpose(0, 2, 1))).all()), f"{case}: results do not go home")
        _law(bool((back.senders <= backwards).all()), f"{case}: combine uses pairs that dispatch does not")
        # the least that any transport must move: a token once into every node that needs it
        other = cluster.node[:, None] != np.arange(cluster.nodes)
        least = (flow.node_copies * other).sum(axis=1) * spec.dispatch_token_bytes
        cross = ~cluster.same_node
        moved = sum((leg * cross).sum(axis=1) for leg in there.legs)
        into = np.stack([moved[:, cluster.node == node].sum(axis=1) for node in range(cluster.nodes)], axis=1)
        _least(into, least, f"{case}: fewer bytes enter a node than its tokens have")
        empty = _empty(flow)
        quiet = transport(empty, cluster, spec, "dispatch")
        _law(not any(leg.any() for leg in quiet.legs), f"{case}: no tokens, but bytes on the network")
    _law(carried > 0, "the transport refused every cluster")


def check_policy(policy: str | Policy) -> None:
    """Judge a dispatch policy, by name or as one of the wrappers of ``moesim.placement.policies``.

    Tokens in are tokens out; only slots that hold the expert serve it; a token is counted once per rank and once per
    node; forwarding inside a node delivers what enters it; the same seed gives the same flow.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    for case, cluster, batches, placement in _worlds():
        routes, home = batches.routes(0), batches.homes(0)
        given = (routes, home, placement, cluster.node, cluster.landing)
        try:
            flow = dispatch(*given, policy=policy, seed=3)
        except InputError as error:
            raise Verdict(f"{case}: {error}") from None
        spec = batches.trace.spec
        picks = np.stack([np.bincount(routes[:, i].ravel(), minlength=spec.experts) for i in range(spec.layers)])
        served = np.zeros((spec.layers, spec.experts))
        layer, rank, slot = np.nonzero(placement.experts != EMPTY)
        np.add.at(served, (layer, placement.experts[layer, rank, slot]), flow.slot_tokens[layer, rank, slot])
        _near(served, picks, f"{case}: experts serve other tokens than picked them")
        _law(not flow.slot_tokens[placement.experts == EMPTY].any(), f"{case}: an empty slot serves tokens")
        pairs, copies = flow.pairs, flow.rank_copies
        _near(pairs.sum(axis=1), flow.slot_tokens.sum(axis=2), f"{case}: pairs and slots disagree on a rank's work")
        sent = np.bincount(home, minlength=cluster.ranks) * spec.top_k
        _near(
            pairs.sum(axis=2),
            np.broadcast_to(sent, pairs.shape[:2]),
            f"{case}: a rank sends more or fewer than it has",
        )
        _least(pairs, copies, f"{case}: more copies than token-expert pairs")
        onto = np.stack([copies[:, :, cluster.node == n].sum(axis=2) for n in range(cluster.nodes)], axis=2)
        _least(onto, flow.node_copies, f"{case}: more copies for a node than for its ranks")
        _least(np.broadcast_to(flow.tokens[:, None], flow.node_copies.shape[1:]), flow.node_copies.max(axis=0),
               f"{case}: a token is counted twice for one node")  # fmt: skip
        _near(flow.forward.sum(axis=1), copies.sum(axis=1), f"{case}: forwarding loses or adds tokens")
        again = dispatch(*given, policy=policy, seed=3)
        _near(again.slot_tokens, flow.slot_tokens, f"{case}: the same seed gave another flow", 0.0)


def check_format(format: Any, *, suffix: str = "", sample: Path | None = None, **options: Any) -> None:
    """Judge a file format: a module with ``sniff`` and ``read``, and ``write`` where it can.

    A placement format writes placements and must read back what it wrote; a trace format is given a sample file.
    ``sniff`` knows its own files and never raises; broken files end in a MoesimError, never in another exception.

    Parameters
    ----------
    format
        The module.
    suffix
        How the names of its files end, where the format wants that.
    sample
        A file of a trace format, or a folder where it is one of folders.
    options
        Options of ``read`` for the sample.

    Raises
    ------
    Verdict
        If a law is broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if sample is not None:
            _check_reading(format, sample, place, lambda path: format.read(path, **options))
            return
        for number, (placement, spec) in enumerate(_placements()):
            path = place / f"placement{number}{suffix}"
            try:
                format.write(placement, path, spec=spec)
            except MoesimError:
                _law(placement.empty_slots > 0, f"placement {number}: a full placement was refused")
                _law(not path.exists(), f"placement {number}: refused, but something was written")
                continue
            read = partial(format.read, ranks=placement.ranks, spec=spec)
            _law(np.array_equal(read(path).experts, placement.experts), f"placement {number}: read(write(x)) is not x")
            before = path.read_bytes()
            format.write(placement, path, spec=spec)
            _law(path.read_bytes() == before, f"placement {number}: the same placement gave other bytes")
            _check_reading(format, path, place, read)


def _check_reading(format: Any, path: Path, folder: Path, read: Callable[[Path], Any]) -> None:
    _law(bool(format.sniff(path)), f"{path.name}: sniff does not know its own file")
    read(path)
    damages: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda whole: b"",
        # an odd part, so that no file of equal lines is cut between two of them
        "cut": lambda whole: whole[: len(whole) * 3 // 7],
        "binary": lambda whole: bytes(range(256)) * 8,
        "text": lambda whole: b"no format at all\n",
        "json": lambda whole: b'{"something": [1, 2]}',
    }
    for name, damage in damages.items():
        # the same name in a folder of its own: some formats tell by their names which files belong together
        broken = folder / f"{path.name}-{name}" / path.name
        broken.parent.mkdir()
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        for file in files:
            copy = broken / file.relative_to(path) if path.is_dir() else broken
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(damage(file.read_bytes()))
        try:
            format.sniff(broken)
        except Exception as error:
            raise Verdict(f"{name} file: sniff raised {type(error).__name__}: {error}") from error
        try:
            read(broken)
        except MoesimError as error:
            _law("\n" not in str(error), f"{name} file: the error is not one line: {error}")
            continue
        except Exception as error:
            raise Verdict(f"{name} file: read raised {type(error).__name__} instead of a MoesimError") from error
        raise Verdict(f"{name} file: was read without an error")


@cache
def _cluster(name: str) -> Cluster:
    wide = Cluster.preset("h100-4x8-rail")
    ranks = {"one node": range(4), "two nodes": (0, 1, 2, 8, 9, 10), "uneven nodes": (0, 1, 2, 8, 9)}
    return wide.restrict(list(ranks[name]))


@cache
def _batches(ranks: int, experts: int) -> Batches:
    spec = ModelSpec(
        name=f"judge-{experts}", layer_ids=(1, 2, 3), num_hidden_layers=4, experts=experts, top_k=3, hidden=512,
        intermediate=256, groups=2, group_limit=2,
    )  # fmt: skip
    trace = router(spec, 2400, seed=5, request_tokens=60)
    return make_batches(trace, ranks, tokens_per_rank=64, seed=1, max_steps=3)


def _problems(deadline_s: float) -> Iterator[tuple[str, Problem]]:
    for where, experts, slots in (
        ("one node", 8, 2),
        ("one node", 8, 3),
        ("two nodes", 12, 2),
        ("two nodes", 12, 4),
        ("uneven nodes", 10, 3),
        ("one node", 6, 8),
    ):
        cluster = _cluster(where)
        batches = _batches(cluster.ranks, experts)
        spec = batches.trace.spec
        costs = Costs.default(spec, cluster)
        case = f"{where}, {experts} experts in {cluster.ranks} x {slots} slots"
        yield case, Problem(
            spec=spec, cluster=cluster, batches=(batches,), slots_per_rank=slots, costs=costs, seed=7,
            deadline_s=deadline_s,
        )  # fmt: skip


def _worlds() -> Iterator[tuple[str, Cluster, Batches, Placement]]:
    for where, experts, slots in (("one node", 8, 3), ("two nodes", 12, 3), ("uneven nodes", 10, 4)):
        cluster = _cluster(where)
        batches = _batches(cluster.ranks, experts)
        yield where, cluster, batches, _some_placement(batches.trace.spec, cluster.ranks, slots)


def _some_placement(spec: ModelSpec, ranks: int, slots: int) -> Placement:
    """Return a placement with replicas, and a hole in its last slot."""
    rng = np.random.default_rng(11)
    experts = np.full((spec.layers, ranks, slots), EMPTY, np.int32)
    for layer in range(spec.layers):
        order = rng.permutation(spec.experts)
        # dealing in turn never gives a rank the same expert twice while slots <= experts
        for place in range(ranks * slots - 1):
            experts[layer, place // slots, place % slots] = order[place % spec.experts]
    return Placement(experts, spec.experts).for_model(spec)


def _placements() -> Iterator[tuple[Placement, ModelSpec]]:
    spec = _batches(4, 8).trace.spec
    holed = _some_placement(spec, 4, 3)
    yield holed, spec
    full = holed.experts.copy()
    for layer in range(spec.layers):
        present = set(full[layer, -1].tolist())
        full[layer, -1, -1] = min(set(range(spec.experts)) - present)
    yield Placement(full, spec.experts).for_model(spec), spec


def _flows() -> Iterator[tuple[str, Cluster, ModelSpec, Flow]]:
    for where, cluster, batches, placement in _worlds():
        flow = dispatch(batches.routes(0), batches.homes(0), placement, cluster.node, cluster.landing)
        yield where, cluster, batches.trace.spec, flow


def _empty(flow: Flow) -> Flow:
    nothing: dict[str, Array] = {
        name: np.zeros_like(getattr(flow, name))
        for name in ("tokens", "slot_tokens", "pairs", "rank_copies", "node_copies", "forward_local")
    }
    return replace(flow, **nothing)


def _law(holds: bool, broken: str) -> None:
    if not holds:
        raise Verdict(broken)


def _near(got: Any, expected: Any, broken: str, rounding: float = _ROUNDING) -> None:
    off = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))
    limit = rounding * np.maximum(np.abs(expected), 1.0)
    _law(bool((off <= limit).all()), f"{broken} (off by up to {off.max():.6g})")


def _least(larger: Any, smaller: Any, broken: str) -> None:
    short = np.asarray(smaller, np.float64) - np.asarray(larger, np.float64)
    limit = _ROUNDING * np.maximum(np.abs(np.asarray(smaller, np.float64)), 1e-12)
    _law(bool((short <= limit).all()), f"{broken} (by up to {short.max(initial=0.0):.6g})")
