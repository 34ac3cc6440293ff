"""Schedules: which phase runs on which stream of a rank, and what waits for what.

A schedule is a description, not code; every engine reads the same one. Inside a layer the shared expert waits for
attention, the routed experts for dispatch, combine for the experts, and the next layer for combine and the shared
expert. A stream runs one phase at a time, in the same order on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from moesim.base.errors import InputError, UnknownName
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED


@dataclass(frozen=True)
class Schedule:
    """How the phases of a step share the streams of a rank.

    Parameters
    ----------
    name
        Name of the schedule.
    stream
        Phase name to the name of the stream it runs on.
    micro_batches
        Parts into which a step's tokens are cut, 1 or more.
    dispatch_after
        ``"shared"`` if tokens leave only when the shared expert is done, else ``"attention"``.
    """

    name: str
    stream: Mapping[str, str]
    micro_batches: int = 1
    dispatch_after: str = "attention"

    def __post_init__(self) -> None:
        if set(self.stream) != set(PHASES):
            raise InputError(f"schedule {self.name!r}: expected a stream for each of {PHASES}, got {dict(self.stream)}")
        if self.micro_batches < 1:
            raise InputError(f"schedule {self.name!r}: expected 1 micro-batch or more, got {self.micro_batches}")
        if self.dispatch_after not in ("attention", "shared"):
            raise InputError(
                f"schedule {self.name!r}: dispatch waits for 'attention' or 'shared', got {self.dispatch_after!r}"
            )
        object.__setattr__(self, "stream", MappingProxyType(dict(self.stream)))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.name, dict(self.stream), self.micro_batches, self.dispatch_after))

    @property
    def contends(self) -> bool:
        """Whether compute of one micro-batch runs while another's exchange takes SMs from it."""
        return self.micro_batches > 1

    @property
    def needs(self) -> tuple[tuple[int, ...], ...]:
        """Phases of the same layer that each phase waits for, by code; attention waits for the layer before."""
        needs = {ATTENTION: (), SHARED: (ATTENTION,), EXPERTS: (DISPATCH,), COMBINE: (EXPERTS,)}
        needs[DISPATCH] = (SHARED if self.dispatch_after == "shared" else ATTENTION,)
        return tuple(needs[phase] for phase in range(len(PHASES)))


def _streams(compute: str, comm: str, shared: str) -> dict[str, str]:
    return {"attention": compute, "shared": shared, "dispatch": comm, "experts": compute, "combine": comm}


SCHEDULES: Final = {
    schedule.name: schedule
    for schedule in (
        # one thing after the other, as SGLang and vLLM run DeepEP without overlap options
        Schedule("sequential", _streams("main", "main", "main"), dispatch_after="shared"),
        # the shared expert on a stream of its own, beside dispatch, routed experts and combine
        Schedule("shared-overlap", _streams("main", "main", "side")),
        # two halves of the batch: one computes while the other is on the network
        Schedule("two-batch", _streams("compute", "comm", "compute"), micro_batches=2),
    )
}
"""Built-in schedules by name."""


def get_schedule(schedule: str | Schedule) -> Schedule:
    """Return a schedule by name, or the one given.

    Raises
    ------
    UnknownName
        If there is none of that name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise UnknownName("schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule]
