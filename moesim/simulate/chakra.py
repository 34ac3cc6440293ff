"""Execution traces for ASTRA-sim: one step as MLCommons Chakra ET files, a graph of computing, sending and receiving.

Written to schema/protobuf/et_def.proto of mlcommons/chakra (fields as of its version 1.0.0) with the attributes that
ASTRA-sim's feeder reads: ``is_cpu_op``, ``comm_size``, ``comm_src``, ``comm_dst``, ``comm_tag``. A file is a sequence
of messages, each behind its length as a varint: GlobalMetadata, then Nodes.

All-to-all of Chakra has one size, which is not what experts cause, so every exchange is sends and receives of as many
bytes as the tokens have: a token once for each rank that it visits. What the network does to them ASTRA-sim says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError
from moesim.base.files import atomic_path
from moesim.placement import dispatch
from moesim.simulate.inputs import prepare
from moesim.simulate.loads import Loader

VERSION: Final = "1.0.0"
COMP, SEND, RECV = 4, 5, 6
"""Values of Chakra's NodeType."""
_PACKAGE: Final = "ChakraProtoMsg"


@cache
def _messages() -> dict[str, Any]:
    """Return the classes of the messages that are written: the fields of the schema by name, number and type."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    fields = {
        "AttributeProto": [
            ("name", 1, kinds.TYPE_STRING, False, ""), ("double_val", 3, kinds.TYPE_DOUBLE, False, ""),
            ("uint32_val", 11, kinds.TYPE_UINT32, False, ""), ("uint64_val", 13, kinds.TYPE_UINT64, False, ""),
            ("bool_val", 27, kinds.TYPE_BOOL, False, ""), ("string_val", 29, kinds.TYPE_STRING, False, ""),
        ],
        "GlobalMetadata": [
            ("version", 1, kinds.TYPE_STRING, False, ""), ("attr", 2, kinds.TYPE_MESSAGE, True, "AttributeProto"),
        ],
        "Node": [
            ("id", 1, kinds.TYPE_UINT64, False, ""), ("name", 2, kinds.TYPE_STRING, False, ""),
            # an enum on the wire is a number
            ("type", 3, kinds.TYPE_UINT32, False, ""), ("data_deps", 5, kinds.TYPE_UINT64, True, ""),
            ("duration_micros", 7, kinds.TYPE_UINT64, False, ""),
            ("attr", 10, kinds.TYPE_MESSAGE, True, "AttributeProto"),
        ],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="moesim_et_def.proto", package=_PACKAGE, syntax="proto3")
    for message, listed in fields.items():
        described = file.message_type.add(name=message)
        if message == "AttributeProto":
            # members of the schema's oneof, so that a value of 0 or false is written
            described.oneof_decl.add(name="value")
        for name, number, kind, repeated, of in listed:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, type=kind, label=label)
            if of:
                field.type_name = f".{_PACKAGE}.{of}"
            if name.endswith("_val"):
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in fields}


def write_chakra(
    trace: Any, cluster: Any, plan: Any, prefix: str | Path, *, step: int = 0, policy: str | None = None,
    costs: Any = None, dims: Any = None, tokens_per_rank: Any = None, phase: str | None = None, seed: int = 0,
) -> list[Path]:  # fmt: skip
    """Write one step under a placement as ``PREFIX.{rank}.et``, a file a rank, and return their paths.

    Compute is replayed with the durations of moesim's costs, in whole microseconds, at least 1, as the schema counts
    (the attribute ``duration_s`` keeps them unrounded): run ASTRA-sim without its roofline.

    Parameters
    ----------
    step
        Which step of the batches.
    trace, cluster, plan, policy, costs, dims, tokens_per_rank, phase, seed
        See :func:`moesim.simulate.simulate`.

    Raises
    ------
    InputError
        If there is no such step, or the parts do not fit one another.
    """
    setup = prepare(
        trace, cluster, plan, policy=policy, transport=None, network=None, schedule="sequential", deployment=None,
        dims=dims, tokens_per_rank=tokens_per_rank, phase=phase, costs=costs, max_steps=None, seed=seed,
    )  # fmt: skip
    if not 0 <= step < len(setup.batches.phase):
        raise InputError(f"chakra: there are {len(setup.batches.phase)} steps, no step {step}")
    loader = Loader(setup)
    load = loader.load(step)
    flow = dispatch(
        setup.batches.routes(step), setup.batches.homes(step), setup.placement, setup.cluster.node,
        setup.cluster.landing, policy=setup.policy, table=loader.table, want=("rank_copies",), seed=seed,
    )  # fmt: skip
    copies = np.asarray(flow.rank_copies)
    spec = setup.costs.spec
    sizes = copies * spec.dispatch_token_bytes, copies.transpose(0, 2, 1) * spec.combine_token_bytes
    ids = setup.batches.trace.spec.layer_ids
    paths = []
    for rank in range(setup.cluster.ranks):
        path = Path(f"{prefix}.{rank}.et")
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            facts = {"producer": "moesim", "model": spec.name, "policy": setup.policy, "step": str(step)}
            _write(file, _messages()["GlobalMetadata"](version=VERSION, attr=[_attr(*fact) for fact in facts.items()]))
            for node in _nodes(rank, load.work, float(load.outside_s[rank]), sizes, ids):
                _write(file, node)
        paths.append(path)
    return paths


def _nodes(rank: int, work: Any, outside_s: float, sizes: tuple[Array, Array], layer_ids: Any) -> Iterator[Any]:
    """Yield the nodes of a rank, every one after those it waits for."""
    number = 0

    def node(name: str, kind: int, deps: list[int], seconds: float = 0.0, **attributes: Any) -> Any:
        nonlocal number
        number += 1
        attributes = {"is_cpu_op": False} | ({"duration_s": float(seconds)} if kind == COMP else {}) | attributes
        return _messages()["Node"](
            id=number,
            name=name,
            type=kind,
            data_deps=deps,
            duration_micros=max(1, round(seconds * 1e6)) if kind == COMP else 0,
            attr=[_attr(key, value) for key, value in attributes.items()],
        )

    last: list[int] = []
    for layer, decoder in enumerate(layer_ids):
        yield (attention := node(f"L{decoder} attention", COMP, last, work.attention_s[0, layer, rank]))
        last = []
        if (shared_s := work.shared_s[0, layer, rank]) > 0:
            yield (shared := node(f"L{decoder} shared expert", COMP, [attention.id], shared_s))
            last.append(shared.id)
        ready = [attention.id]
        for way, name in enumerate(("dispatch", "combine")):
            tag = 2 * layer + way
            size = sizes[way][layer]
            for peer in np.flatnonzero(np.round(size[rank])):
                if peer != rank:
                    yield node(
                        f"L{decoder} {name} to {peer}", SEND, ready, comm_src=rank, comm_dst=int(peer),
                        comm_size=round(float(size[rank, peer])), comm_tag=tag,
                    )  # fmt: skip
            arrived = list(ready)
            for peer in np.flatnonzero(np.round(size[:, rank])):
                if peer != rank:
                    yield (received := node(
                        f"L{decoder} {name} from {peer}", RECV, [attention.id], comm_src=int(peer), comm_dst=rank,
                        comm_size=round(float(size[peer, rank])), comm_tag=tag,
                    ))  # fmt: skip
                    arrived.append(received.id)
            if way == 0 and (experts_s := work.experts_s[0, layer, rank]) > 0:
                yield (experts := node(f"L{decoder} experts", COMP, arrived, experts_s))
                ready = [experts.id]
            else:
                ready = arrived
        last += ready
    if outside_s > 0:
        yield node("outside the MoE layers", COMP, last, outside_s)


def _attr(name: str, value: Any) -> Any:
    kind = {bool: "bool_val", float: "double_val", str: "string_val", int: "uint32_val"}[type(value)]
    kind = "uint64_val" if name == "comm_size" else kind
    return _messages()["AttributeProto"](name=name, **{kind: value})


def _write(file: Any, message: Any) -> None:
    body = message.SerializeToString(deterministic=True)
    length = len(body)
    while length > 0x7F:
        file.write(bytes([length & 0x7F | 0x80]))
        length >>= 7
    file.write(bytes([length]))
    file.write(body)
