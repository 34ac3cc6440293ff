"""How to start a serving engine with an exported map, and what it would silently misread.

Every engine has rules that its loader does not check: it serves on with another map, or with none. A placement, a
model, a dispatch policy and a file name are checked against them, and the refusal names the rule.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.errors import InputError, UnknownName
from moesim.base.units import count
from moesim.placement import architectures
from moesim.placement.placement import Placement
from moesim.placement.policies import POLICIES
from moesim.spec import ModelSpec

RULES: Final = {
    "full slots": "every slot holds an expert",
    "layer numbers": "the map names the decoder layers of the model, all of its MoE layers and no other",
    "known model": "the engine can place the experts of this architecture; for others it ignores the map",
    "policy": "the engine dispatches as the plan assumes, where experts have several copies",
    "file name": "the file ends as the engine expects; SGLang takes other names for the map itself",
    "several ranks": "there is more than one rank",
    "nodes": "the ranks of a node stand together and nodes are equally large, as the engine counts them off",
}
"""What is checked before anything is written, by the name that a refusal gives."""


@dataclass(frozen=True)
class Launch:
    """How to start an engine with a map.

    Parameters
    ----------
    engine
        Engine and version whose rules were checked.
    program
        Command that starts the engine, with MODEL in place of the model.
    flags
        Arguments to add to the command that starts the engine.
    environment
        Variables to set for it.
    config
        Content of the configuration file that the flags name, empty where there is none.
    notes
        What cannot be checked here.
    """

    engine: str
    program: tuple[str, ...]
    flags: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    notes: tuple[str, ...] = ()

    @property
    def command_line(self) -> str:
        """Environment, program and flags as a shell takes them."""
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*settings, shlex.join([*self.program, *self.flags])])


_VLLM: Final = ("vllm", "serve", "MODEL")


@dataclass(frozen=True)
class _Case:
    engine: str
    placement: Placement
    path: str
    policy: str | None
    model: str | None
    architecture: str | None
    node: tuple[int, ...] | None

    @property
    def ranks(self) -> str:
        return str(self.placement.ranks)

    @property
    def redundant(self) -> int:
        """Slots beyond one an expert."""
        return self.placement.ranks * self.placement.slots_per_rank - self.placement.num_experts

    @property
    def copies(self) -> bool:
        """Whether an expert has several copies; without, all policies are the same."""
        return int(self.placement.replicas.max()) > 1

    def refuse(self, rule: str, problem: str) -> NoReturn:
        raise InputError(f"{self.engine}, rule {rule!r}: {problem}")

    def known(self, supported: frozenset[str]) -> tuple[str, ...]:
        """Check the architecture against those that the engine places, and return notes."""
        if self.architecture is None:
            called = "the model" if self.model is None else f"model {self.model!r}"
            return (f"the architecture of {called} is not known: check that {self.engine} places its experts",)
        if self.architecture not in supported:
            self.refuse("known model", f"{self.architecture} is not among the {len(supported)} architectures whose "
                        "experts it places; it would serve and ignore the map")  # fmt: skip
        return ()

    def runs(self, way: str, exact: tuple[str, ...] = (), mean: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Check the policy against those that are what the engine does, or the mean of it, and return notes."""
        if not self.copies:
            return ()
        if self.policy is None:
            return (f"{self.engine} {way}: what was predicted under another policy does not hold",)
        if self.policy not in (*exact, *mean):
            self.refuse("policy", f"it does not dispatch by {self.policy!r}: it {way}; plan with policy "
                        f"{' or '.join(map(repr, (*exact, *mean)))}, or ask for no policy "
                        "(--policy any), and what was predicted does not hold")  # fmt: skip
        return () if self.policy in exact else (f"{self.engine} {way}: as evenly as {self.policy!r}, in another order",)


def _sglang(case: _Case) -> Launch:
    if not case.path.endswith(".json"):
        case.refuse("file name", f"expected a name that ends in .json, got {case.path!r}")
    notes = case.known(architectures.SGLANG)
    notes += case.runs(
        "takes the copy on the own GPU, else on the own node, else any",
        ("sglang", "nearest", "batch-lp", "uniform", "random"),
    )
    if case.copies and case.policy in ("uniform", "random"):
        backend, algorithm = "none", "dynamic"
        notes += (
            "SGLang uses all copies evenly only without an all-to-all backend, and then every rank sees all tokens: "
            "the balance is as predicted, the traffic is not",
        )
    elif case.copies and case.policy == "batch-lp":
        backend, algorithm = "deepep", "lp"
        notes += ("SGLang's lp dispatch is for DeepSeek models, and stops its linear program after a few iterations",)
    else:
        backend, algorithm = "deepep", "static"
        if case.policy == "nearest" and case.copies:
            notes += (
                "of several copies on a node SGLang's ranks all take the first, and each rank shuffles the others for "
                "itself, where `nearest` deals them out: expect less balance than predicted; policy `sglang` is exact",
            )
    if case.node is None:
        notes += ("on several nodes add --nnodes, with ranks in the order of the plan",)
    elif over := _node_flags(case):
        last = int(over[1]) - 1
        notes += (
            f"start it on every node, with --node-rank 0 to {last} in the order of the plan and --dist-init-addr "
            "HOST:PORT of the first",
        )
    notes += (
        "these flags split the attention of a token over all ranks; for requests of its own on every rank, as plans "
        f"and simulations have it unless told otherwise, add --enable-dp-attention --dp-size {case.ranks}",
    )
    flags = (
        "--init-expert-location", case.path, "--tp-size", case.ranks, "--ep-size", case.ranks,
        "--ep-num-redundant-experts", str(case.redundant), "--moe-a2a-backend", backend,
        "--ep-dispatch-algorithm", algorithm, *_node_flags(case),
    )  # fmt: skip
    return Launch(case.engine, ("python", "-m", "sglang.launch_server", "--model-path", "MODEL"), flags, notes=notes)


def _trtllm(case: _Case) -> Launch:
    if case.placement.ranks < 2:
        case.refuse("several ranks", "it balances experts over two ranks or more, the placement has one")
    notes = case.known(architectures.TRTLLM)
    notes += case.runs("deals the tokens of an expert out over its copies in turn", mean=("uniform", "random"))
    notes += (
        f"layers of multi-token prediction have indices of their own, from {case.placement.num_hidden_layers}: "
        "serve without it, or add rows for them",
    )
    config = (
        "enable_attention_dp: true\n"
        "moe_config:\n"
        "  backend: WIDEEP\n"
        f"  load_balancer: {json.dumps(case.path)}\n"
    )  # fmt: skip
    notes += ("write the configuration to llm_api.yaml",)
    flags = ("--tp_size", case.ranks, "--ep_size", case.ranks, "--extra_llm_api_options", "llm_api.yaml")
    return Launch(case.engine, ("trtllm-serve", "MODEL"), flags, config=config, notes=notes)


def _vllm(case: _Case, settings: Mapping[str, object], environment: Mapping[str, str], *notes: str) -> Launch:
    if case.placement.ranks < 2:
        case.refuse("several ranks", "it balances experts over two ranks or more, the placement has one")
    notes = (
        *case.runs("chooses by a hash of the token's row", ("hash",), ("uniform", "random")),
        f"any --data-parallel-size and --tensor-parallel-size that multiply to {case.ranks} will do",
        *notes,
    )
    settings = {"num_redundant_experts": case.redundant, **settings}
    flags = (
        "--enable-expert-parallel", "--data-parallel-size", case.ranks, "--enable-eplb",
        "--eplb-config", json.dumps(settings),
    )  # fmt: skip
    return Launch(case.engine, _VLLM, flags, environment, notes=notes)


def _vllm_plugin(case: _Case) -> Launch:
    return _vllm(
        case, {"step_interval": 400}, {"MOESIM_VLLM_MAP": case.path},
        "install moesim where vLLM runs; the map is in place after a quarter of step_interval steps",
        "serve without a draft model: it would need a map of its own",
    )  # fmt: skip


def _vllm_41141(case: _Case) -> Launch:
    return _vllm(
        case, {"initial_mapping_path": case.path, "disable_online_rebalancing": True}, {},
        "experimental: needs a vLLM with pull request 41141, released versions refuse these keys",
    )  # fmt: skip


def _vllm_49572(case: _Case) -> Launch:
    return _vllm(
        case, {"initial_expert_map_path": case.path}, {},
        "experimental: needs a vLLM with pull request 49572, released versions refuse this key",
    )  # fmt: skip


def _ascend(case: _Case) -> Launch:
    if not case.path.endswith(".json"):
        case.refuse("file name", f"expected a name that ends in .json, got {case.path!r}")
    notes = (
        *case.runs("gives every source rank one copy, that of its number modulo the copies", mean=("uniform",)),
        f"any --data-parallel-size and --tensor-parallel-size that multiply to {case.ranks} will do",
        "the number of redundant experts is taken from the map",
        "only with vLLM's model runner V1; vllm-ascend plans to drop static maps in 0.25.1",
    )
    config = json.dumps({"eplb_config": {"expert_map_path": case.path}})
    flags = ("--enable-expert-parallel", "--data-parallel-size", case.ranks, "--additional-config", config)
    return Launch(case.engine, _VLLM, flags, notes=notes)


_ENGINES: Final[Mapping[str, tuple[str, Callable[[_Case], Launch]]]] = {
    "sglang": ("SGLang 0.5.23", _sglang),
    "trtllm": ("TensorRT-LLM 1.2", _trtllm),
    "vllm": ("vLLM 0.33", _vllm_plugin),
    "vllm-41141": ("vLLM with pull request 41141", _vllm_41141),
    "vllm-49572": ("vLLM with pull request 49572", _vllm_49572),
    "vllm-ascend": ("vllm-ascend 0.23", _ascend),
}
NUMBERED: Final = ("sglang", "trtllm")
"""Formats whose rows go by decoder layer."""


def engine_formats() -> list[str]:
    """Return the placement formats that an engine loads."""
    return list(_ENGINES)


def launch(
    placement: Placement,
    path: str,
    format: str,
    *,
    spec: ModelSpec | None = None,
    policy: str | None = None,
    node: ArrayLike | None = None,
    architecture: str | None = None,
) -> Launch:
    """Check a placement by the rules of an engine and say how to start the engine with it.

    Parameters
    ----------
    placement
        What is exported.
    path
        File of the map, as the engine will be given it.
    format
        One of :func:`engine_formats`.
    spec
        The model; None if the placement knows its layers, and then the model is not checked.
    policy
        Dispatch policy that was planned for; None accepts whatever the engine does.
    node
        int [ranks]: node of every rank, where it is known.
    architecture
        ``architectures`` of the model's config.json; None goes by the name of ``spec``.

    Raises
    ------
    InputError
        If a rule of the engine is broken; the message names it (:data:`RULES`).
    """
    if format not in _ENGINES:
        raise UnknownName("format of a serving engine", format, _ENGINES)
    if policy is not None:
        POLICIES.get(policy)
    engine, make = _ENGINES[format]
    numbered = placement if spec is None else placement.for_model(spec)
    kind = architecture or (architectures.architecture_of(spec.name) if spec is not None else None)
    nodes = None if node is None else tuple(int(i) for i in np.asarray(node))
    case = _Case(engine, numbered, str(path), policy, None if spec is None else spec.name, kind, nodes)
    if numbered.empty_slots:
        case.refuse("full slots", f"the placement has {count(numbered.empty_slots, 'empty slot')}; fill up with "
                    "moesim.placement.fill_empty(placement, loads), on the command line with --fill TRACE")  # fmt: skip
    if format in NUMBERED and numbered.layer_ids is None:
        case.refuse("layer numbers", "it goes by decoder layer, and this placement does not know them; give the model")
    if numbered.left_out:
        whole = numbered.layers + numbered.left_out
        case.refuse("layer numbers", f"the plan holds {numbered.layers} of the {whole} MoE layers of the model, as the "
                    "trace that it was made on does; record and plan all of them")  # fmt: skip
    if nodes is not None and len(nodes) != numbered.ranks:
        raise InputError(f"launch: expected the node of each of {count(numbered.ranks, 'rank')}, got {len(nodes)}")
    return make(case)


def _node_flags(case: _Case) -> tuple[str, ...]:
    if case.node is None:
        return ()
    names = list(dict.fromkeys(case.node))
    size, rest = divmod(len(case.node), len(names))
    if rest or list(case.node) != [name for name in names for _ in range(size)]:
        case.refuse("nodes", f"it takes each {count(size or 1, 'rank')} in turn for a node, but the ranks lie on "
                    f"nodes {list(case.node)}; number ranks node by node, on nodes of one size")  # fmt: skip
    return ("--nnodes", str(len(names))) if len(names) > 1 else ()
