"""`capture`: a recorder attached to the routers of a model for the time of a `with` block.

A router of one's own takes part by having two attributes: ``layer``, its MoE layer number, and ``recorder``, None or a
`RoutingSink` that it calls once a forward pass. With no recorder attached that costs one comparison with None. Models
of transformers, and any whose experts are called as theirs are, need nothing: see `moesim.capture.taps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moesim.base.errors import InputError
from moesim.capture.recorder import Recorder
from moesim.capture.taps import Picks, Record, find_taps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from moesim.spec import ModelSpec


class RoutingSink(Protocol):
    """What a router talks to."""

    def record(self, layer: int, experts: Tensor, weights: Tensor) -> None:
        """Take note of the experts and gate weights [tokens, top_k] of one MoE layer in one forward pass."""


@contextmanager
def capture(
    model: nn.Module,
    output: str | Path | None = None,
    *,
    keep_weights: bool = True,
    every: int = 1,
    phase: str = "train",
    spec: ModelSpec | None = None,
    picks: Picks | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Iterator[Recorder]:
    """Record the routing of every forward pass of `model` inside the block.

    Parameters
    ----------
    model
        A torch module: a model of transformers 5.0 or later, one whose routers follow the protocol of this file, or any
        whose experts are called with ``(hidden_states, top_k_index, top_k_weights)``.
    output
        Trace file that is written while the block runs, in bounded memory, and is complete when it is left, by an
        exception too. Without it, `Recorder.take` and `Recorder.trace` give what was recorded.
    keep_weights
        Whether gate weights are kept beside expert ids.
    every
        Record one forward pass in so many.
    phase
        Phase of the recorded tokens: ``"train"``, ``"prefill"`` or ``"decode"``.
    spec
        The model, where it cannot be told from the module.
    picks
        Which modules of another kind of model to watch: ``picks(name, module)`` is None, or a function of the
        arguments, keyword arguments and output of its forward pass that returns experts and weights [tokens, top_k].
    origin
        Facts to add to the origin of the trace.

    Raises
    ------
    InputError
        If no router is found, layers are not 0..L-1, or the model's own routers are being captured already.
    """
    from moesim.capture.model import describe_model, origin_of

    with ExitStack() as stack:
        own: list[Any] = [m for m in model.modules() if hasattr(m, "recorder") and hasattr(m, "layer")]
        if own and picks is None:
            _check(model, own)
            layers, experts = [list(range(len(own)))], [[0] * len(own)]
        else:
            towers = find_taps(model, picks)
            layers = [[tap.layer for tap in tower] for tower in towers]
            experts = [[tap.experts for tap in tower] for tower in towers]
        recorder = Recorder(
            experts,
            keep_weights,
            every=every,
            describe=lambda top_k: spec or describe_model(model, layers, experts, top_k),
            phase=phase,
            origin=origin_of(model, every) | dict(origin or {}),
        )
        if own and picks is None:
            for router in own:
                router.recorder = recorder
                stack.callback(setattr, router, "recorder", None)
        else:
            for row, tap in enumerate(tap for tower in towers for tap in tower):
                stack.callback(tap.attach(_row(recorder, row)))
        handle = model.register_forward_pre_hook(_shape_hook(recorder), with_kwargs=True)
        stack.callback(handle.remove)
        if output is not None:
            from moesim.trace.spool import Spool

            spool = stack.enter_context(Spool(output, recorder.origin))
            recorder.send(spool.append)
            # before the spool closes, and whatever ends the block: a pass that was cut short is left out
            stack.push(lambda *_: recorder.finish())
        yield recorder


def _check(model: nn.Module, routers: list[Any]) -> None:
    if sorted(router.layer for router in routers) != list(range(len(routers))):
        raise InputError(f"{type(model).__name__}: layers of its {len(routers)} routers must be 0..{len(routers) - 1}")
    if any(router.recorder is not None for router in routers):
        raise InputError(f"{type(model).__name__} is being captured already: leave the other `capture` block first")


def _row(recorder: Recorder, row: int) -> Record:
    def record(experts: Tensor, weights: Tensor | None) -> None:
        recorder.record(row, experts, weights)

    return record


def _shape_hook(recorder: Recorder) -> Callable[[Any, Any, Any], None]:
    """Return a hook that tells sequences apart: the first integers [sequences, length] among the arguments."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (kwargs.get("input_ids"), *args):
            if getattr(value, "ndim", 0) == 2 and not value.is_floating_point():
                recorder.note_shape(*value.shape)
                return
        embedded: Any = kwargs.get("inputs_embeds")
        if getattr(embedded, "ndim", 0) == 3:
            recorder.note_shape(*embedded.shape[:2])

    return hook
