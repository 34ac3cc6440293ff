"""Chakra execution traces: read back by the wire format itself, they hold the traffic and the compute of a step."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.costs import Costs
from moesim.placement import dispatch, table_of
from moesim.simulate import simulate
from moesim.simulate.chakra import COMP, RECV, SEND, write_chakra

from . import worlds

# field numbers of mlcommons/chakra, schema/protobuf/et_def.proto
ATTRIBUTE = {1: "name", 3: "double", 11: "uint32", 13: "uint64", 27: "bool", 29: "string"}
NODE = {1: "id", 2: "name", 3: "type", 4: "ctrl_deps", 5: "data_deps", 6: "start", 7: "duration_micros", 10: "attr"}


def varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(raw: bytes):
    """Yield number and value of every field of a message: protobuf's wire format."""
    at = 0
    while at < len(raw):
        key, at = varint(raw, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(raw, at)
        elif kind == 1:
            value, at = struct.unpack_from("<d", raw, at)[0], at + 8
        else:
            assert kind == 2
            length, at = varint(raw, at)
            value, at = raw[at : at + length], at + length
        yield number, value


def attribute(raw: bytes):
    found = dict(fields(raw))
    name = found.pop(1).decode()
    [(number, value)] = found.items()
    return name, (ATTRIBUTE[number], value.decode() if isinstance(value, bytes) else value)


def read(path: Path) -> tuple[dict, list[dict]]:
    raw, at, messages = path.read_bytes(), 0, []
    while at < len(raw):
        length, at = varint(raw, at)
        messages.append(raw[at : at + length])
        at += length
    head = list(fields(messages[0]))
    about = {"version": head[0][1].decode(), **{k: v[1] for k, v in (attribute(a) for n, a in head if n == 2)}}
    nodes = []
    for message in messages[1:]:
        node: dict = {"data_deps": [], "attr": {}}
        for number, value in fields(message):
            name = NODE[number]
            if name == "attr":
                key, typed = attribute(value)
                node["attr"][key] = typed
            elif name == "data_deps":
                # packed varints
                at_dep = 0
                while at_dep < len(value):
                    dep, at_dep = varint(value, at_dep)
                    node["data_deps"].append(dep)
            else:
                node[name] = value.decode() if isinstance(value, bytes) else value
        nodes.append(node)
    return about, nodes


@pytest.fixture(scope="module")
def world():
    made = worlds.world(1)
    return made.batches, made.cluster, made.placement, Costs.default(made.trace.spec, made.cluster)


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    batches, cluster, placement, costs = world
    prefix = tmp_path_factory.mktemp("chakra") / "step"
    paths = write_chakra(batches, cluster, placement, prefix, costs=costs, step=1)
    assert [path.name for path in paths] == [f"step.{rank}.et" for rank in range(cluster.ranks)]
    return [read(path) for path in paths]


def messages(written, kind):
    """Sizes by (source, destination, tag), and who wrote them."""
    found = {}
    for rank, (_, nodes) in enumerate(written):
        for node in nodes:
            if node["type"] == kind:
                attr = {key: value for key, (_, value) in node["attr"].items()}
                key = attr["comm_src"], attr["comm_dst"], attr["comm_tag"]
                assert key not in found
                assert rank == key[0 if kind == SEND else 1]
                found[key] = attr["comm_size"]
    return found


def test_every_message_is_sent_and_received_once_with_the_bytes_of_the_flow(world, written):
    batches, cluster, placement, costs = world
    sent, received = messages(written, SEND), messages(written, RECV)
    assert sent == received
    flow = dispatch(
        batches.routes(1), batches.homes(1), placement, cluster.node, cluster.landing, policy="nearest",
        table=table_of("nearest", placement, cluster.node), want=("rank_copies",),
    )  # fmt: skip
    expected = {}
    for layer, home, rank in np.argwhere(flow.rank_copies):
        if home != rank:
            tokens = flow.rank_copies[layer, home, rank]
            expected[home, rank, 2 * layer] = tokens * costs.spec.dispatch_token_bytes
            expected[rank, home, 2 * layer + 1] = tokens * costs.spec.combine_token_bytes
    assert sent == expected


def test_compute_is_that_of_the_simulation(world, written):
    batches, cluster, placement, costs = world
    report = simulate(batches, cluster, placement, costs=costs, schedule="sequential", spans=(1,))
    spans = report.spans[report.spans["step"] == 1]
    for name, phase in (("attention", 0), ("experts", 3)):
        for rank, (_, nodes) in enumerate(written):
            mine = [node for node in nodes if node["type"] == COMP and node["name"].endswith(name)]
            seconds = [node["attr"]["duration_s"][1] for node in mine]
            rows = spans[(spans["rank"] == rank) & (spans["phase"] == phase)]
            expected = np.sort((rows["stop_s"] - rows["start_s"])[rows["stop_s"] > rows["start_s"]])
            assert np.sort(seconds) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert [node["duration_micros"] for node in mine] == [max(1, round(s * 1e6)) for s in seconds]


def test_the_types_are_those_that_the_feeder_reads(written):
    about, nodes = written[0]
    assert about["version"] == "1.0.0"
    assert about["producer"] == "moesim"
    wanted = {"is_cpu_op": "bool", "comm_src": "uint32", "comm_dst": "uint32", "comm_tag": "uint32",
              "comm_size": "uint64", "duration_s": "double"}  # fmt: skip
    for node in nodes:
        assert all(kind == wanted[name] for name, (kind, _) in node["attr"].items())
        # false is written, not left out: the feeder must find the attribute
        assert node["attr"]["is_cpu_op"] == ("bool", 0)


def test_a_run_over_the_files_ends(written):
    """No rank waits for ever: with messages that take no time every node gets its turn."""
    ready: set = set()
    arrived: set = set()
    todo = {(rank, node["id"]): node for rank, (_, nodes) in enumerate(written) for node in nodes}
    while todo:
        before = len(todo)
        for (rank, number), node in list(todo.items()):
            if any((rank, dep) not in ready for dep in node["data_deps"]):
                continue
            attr = {key: value for key, (_, value) in node["attr"].items()}
            key = tuple(attr.get(name) for name in ("comm_src", "comm_dst", "comm_tag"))
            if node["type"] == RECV and key not in arrived:
                continue
            if node["type"] == SEND:
                arrived.add(key)
            ready.add((rank, number))
            del todo[rank, number]
        assert len(todo) < before
    for _, nodes in written:
        ids = [node["id"] for node in nodes]
        assert ids == sorted(set(ids))
        assert all(dep < node["id"] for node in nodes for dep in node["data_deps"])


def test_a_step_that_is_not_there_is_refused(world, tmp_path):
    batches, cluster, placement, costs = world
    with pytest.raises(InputError, match="no step 99"):
        write_chakra(batches, cluster, placement, tmp_path / "x", costs=costs, step=99)
    assert list(tmp_path.iterdir()) == []
