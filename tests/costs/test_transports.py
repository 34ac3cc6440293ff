"""Transports: which bytes they put where, and what they cost without any."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.arrays import Array
from moesim.base.errors import InputError, UnknownName
from moesim.cluster import Cluster
from moesim.costs import NETWORKS, TRANSPORTS, Transfer
from moesim.costs.ports import ports
from moesim.costs.types import DIRECTIONS
from moesim.placement import Flow

from .worlds import SPEC, batches, cluster, preset, random_flow, route, traffics, transfer_of

ROUTED = ("direct", "rank-dedup", "hierarchical")


def across(where: Cluster, transfer: Transfer) -> float:
    """Bytes that leave a node, all layers."""
    return sum(float((leg * ~where.same_node).sum()) for leg in transfer.legs)


@settings(deadline=None, max_examples=40)
@given(batches())
def test_a_copy_per_pair_costs_at_least_one_per_rank_which_costs_at_least_one_per_node(world: tuple[Cluster, Flow]):
    where, flow = world
    for direction in DIRECTIONS:
        direct, dedup, nodes = (across(where, TRANSPORTS.get(n)(flow, where, SPEC, direction)) for n in ROUTED)
        assert dedup <= flow.rank_copies.sum() * 1e6
        assert direct >= flow.pairs[:, ~where.same_node].sum() * SPEC.dispatch_token_bytes * (1 - 1e-12)
        # per-copy metadata differs between the libraries, by less than one part in ten
        assert nodes <= dedup * 1.1
        assert dedup <= direct * 1.1


def test_a_rank_of_a_mesh_sends_over_all_its_links():
    mesh = preset("mi300x-4x8-rail").restrict(range(8))
    # seven links of 48 GB/s
    np.testing.assert_allclose(ports(mesh).seconds_per_byte[:, 0], 1 / 336e9)
    flow = random_flow(mesh, SPEC, 4096)
    for direction in DIRECTIONS:
        transfer = TRANSPORTS.get("hierarchical")(flow, mesh, SPEC, direction)
        timing = NETWORKS.get("bottleneck")(transfer, mesh)
        # traffic is nearly even, so that links and ports are about as busy; over one link it would be seven times
        assert timing.makespan_s[0] - timing.floor_s[0] < 1.3 * timing.link_time_s.max()
        assert (timing.own_s < 1.1 * timing.makespan_s[0]).all()


def test_a_slow_gpu_does_not_slow_the_ports_of_its_neighbours():
    whole = preset("h100-1x8")
    slow = whole.edit(degrade={"node0.gpu3": 0.25})
    before, after = (ports(each).seconds_per_byte[:, 0] for each in (whole, slow))
    np.testing.assert_allclose(after / before, [1, 1, 1, 4, 1, 1, 1, 1])


@settings(deadline=None, max_examples=40)
@given(batches())
def test_bytes_are_copies_times_size(world: tuple[Cluster, Flow]):
    where, flow = world
    off = 1 - np.eye(where.ranks)
    up, down = (TRANSPORTS.get("direct")(flow, where, SPEC, d) for d in DIRECTIONS)
    np.testing.assert_allclose(up.legs[0], flow.pairs * off * (SPEC.dispatch_token_bytes + 16))
    np.testing.assert_allclose(down.legs[0], flow.pairs.transpose(0, 2, 1) * off * SPEC.combine_token_bytes)

    there, back = (TRANSPORTS.get("hierarchical")(flow, where, SPEC, d) for d in DIRECTIONS)
    own = where.node[:, None] == np.arange(where.nodes)
    remote = float((flow.node_copies * ~own).sum())
    size = SPEC.dispatch_token_bytes + 8 + SPEC.top_k * 12
    assert across(where, there) == pytest.approx(remote * size)
    assert across(where, back) == pytest.approx(remote * (SPEC.combine_token_bytes + 8 + SPEC.top_k * 4))
    inside = flow.forward * off
    assert there.legs[1].sum() == pytest.approx(inside.sum() * size)
    # combine walks the same way backwards
    np.testing.assert_array_equal(there.legs[0] > 0, back.legs[1].transpose(0, 2, 1) > 0)
    np.testing.assert_array_equal(there.legs[1] > 0, back.legs[0].transpose(0, 2, 1) > 0)


@pytest.mark.parametrize("name", ROUTED)
def test_senders_are_those_with_tokens_for_a_rank_whatever_the_way(name: str):
    where = cluster(2, 4)
    # token 0 of rank 0 goes to experts 5 and 6: ranks 5 and 6, by way of rank 4
    flow = route(where, SPEC, np.array([[[5, 6]]], np.int16))
    transfer = TRANSPORTS.get(name)(flow, where, SPEC, "dispatch")
    assert np.argwhere(transfer.senders).tolist() == [[0, 0, 5], [0, 0, 6]]
    assert TRANSPORTS.get(name)(flow, where, SPEC, "combine").senders[0, 5, 0]


def test_hierarchical_lands_on_the_rail_and_sends_one_copy_per_node():
    where = cluster(2, 4)
    flow = route(where, SPEC, np.array([[[5, 6]]], np.int16))
    nic, nvlink = TRANSPORTS.get("hierarchical")(flow, where, SPEC, "dispatch").legs
    assert np.argwhere(nic).tolist() == [[0, 0, 4]]
    assert np.argwhere(nvlink).tolist() == [[0, 4, 5], [0, 4, 6]]


def test_allgather_does_not_depend_on_routing():
    where = cluster(2, 4)
    spread, hot = np.array([[[0, 5]], [[3, 7]]] * 8, np.int16), np.array([[[0, 1]]] * 16, np.int16)
    for direction in DIRECTIONS:
        one, two = (
            TRANSPORTS.get("allgather")(route(where, SPEC, routes), where, SPEC, direction) for routes in (spread, hot)
        )
        assert all(np.array_equal(a, b) for a, b in zip(one.legs, two.legs, strict=True))


def test_allgather_gives_every_rank_what_the_others_hold():
    where = cluster(2, 4)
    flow = random_flow(where, SPEC, tokens=3)
    transfer = TRANSPORTS.get("allgather")(flow, where, SPEC, "dispatch")
    inbound = sum(leg[0].sum(axis=0) for leg in transfer.legs)
    held = flow.tokens.sum() - flow.tokens
    np.testing.assert_allclose(inbound, held * (SPEC.dispatch_token_bytes + 8 * SPEC.top_k))


def test_nvlink_needs_one_domain():
    where = preset("gb200-nvl72")
    flow = random_flow(where, SPEC, tokens=2)
    assert TRANSPORTS.get("nvlink")(flow, where, SPEC, "dispatch").total_bytes > 0
    two = cluster(2, 2)
    with pytest.raises(InputError, match="several NVLink domains"):
        TRANSPORTS.get("nvlink")(random_flow(two, SPEC, 2), two, SPEC, "dispatch")
    mesh = preset("mi300x-4x8-rail").restrict(range(8))
    with pytest.raises(InputError, match="a link each to each other and no switch"):
        TRANSPORTS.get("nvlink")(random_flow(mesh, SPEC, 2), mesh, SPEC, "dispatch")
    slow = preset("h100-1x8").edit(degrade={"node0.gpu3": 0.25})
    assert TRANSPORTS.get("nvlink")(random_flow(slow, SPEC, 2), slow, SPEC, "dispatch").total_bytes > 0


@pytest.mark.parametrize("name", TRANSPORTS.names())
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_constant_says_where_it_is_from(name: str, direction: str):
    where = cluster(1, 4)
    transfer = TRANSPORTS.get(name)(random_flow(where, SPEC, 2), where, SPEC, direction)
    assert transfer.sources
    for source in transfer.sources.values():
        assert source.split(":")[0] in ("measured", "datasheet", "assumed")


@settings(deadline=None, max_examples=40)
@given(traffics(), st.floats(0, 20e-6))
def test_bytes_that_the_floor_hides_cost_nothing_and_others_less(world: tuple[Cluster, Array], hidden: float):
    where, traffic = world
    plain = transfer_of(traffic, floor_s=20e-6)
    covered = transfer_of(traffic, floor_s=20e-6, hidden_s=hidden)
    for name in NETWORKS.names():
        late, early = (NETWORKS.get(name)(transfer, where).makespan_s[0] for transfer in (plain, covered))
        floor = NETWORKS.get(name)(covered, where).floor_s[0]
        assert early == pytest.approx(max(late - hidden, floor))


def test_a_floor_hides_no_more_than_itself():
    with pytest.raises(InputError, match="hidden_s: expected 0 to floor_s"):
        transfer_of([[0, 1], [2, 0]], floor_s=1e-6, hidden_s=2e-6)


def test_two_ranks_use_half_the_channels_of_a_collective():
    # 16 channels of 17.6 GB/s to one peer, where the link itself would carry 320 GB/s
    where = cluster(1, 2)
    flow = random_flow(where, SPEC, tokens=4000)
    transfer = TRANSPORTS.get("rank-dedup")(flow, where, SPEC, "combine")
    rate = transfer.legs[0].sum(axis=2) / transfer.out_s[0]
    np.testing.assert_allclose(rate, 16 * 17.6e9)


def test_few_experts_leave_low_latency_few_sms():
    where, spec = cluster(1, 8), dataclasses.replace(SPEC, experts=8)
    wide = dataclasses.replace(SPEC, experts=128)
    few, many = (
        TRANSPORTS.get("direct")(random_flow(where, s, tokens=64), where, s, "dispatch").out_s[0].max()
        for s in (spec, wide)
    )
    assert few == pytest.approx(16 * many)


def test_unknown_transport_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'hierarchical'"):
        TRANSPORTS.get("hierachical")


def test_transfers_stay_read_only_and_check_their_shape():
    transfer = pickle.loads(pickle.dumps(transfer_of([[0, 1], [2, 0]])))
    for array in (*transfer.legs, *transfer.out_s, *transfer.in_s, transfer.messages):
        assert not array.flags.writeable
    with pytest.raises(InputError, match="diagonal must be zero"):
        transfer_of([[1, 1], [2, 0]])
    with pytest.raises(InputError, match="one array per leg"):
        transfer_of([[0, 1], [2, 0]], out_s=(np.zeros((1, 2)),) * 2)


@pytest.mark.parametrize("transport", [*ROUTED, "allgather"])
@pytest.mark.parametrize("network", ["bottleneck", "max-min"])
def test_a_slower_wire_never_makes_a_phase_faster(transport: str, network: str):
    flow = random_flow(preset("h100-4x8-rail"), SPEC, tokens=2)
    spans = []
    for latency in ("10 ns", "0.5 us", "2 us", "20 us"):
        where = preset("h100-4x8-rail").edit({"tier.node.latency": latency, "tier.rail.latency": latency})
        phases = [TRANSPORTS.get(transport)(flow, where, SPEC, direction) for direction in DIRECTIONS]
        spans.append([NETWORKS.get(network)(phase, where).makespan_s[0] for phase in phases])
    assert (np.diff(spans, axis=0) >= 0).all(), spans
    assert (np.array(spans[-1]) > spans[0]).all()
