"""From what stands on the command line to the types of the other rooms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.base.errors import FormatError, InputError
from moesim.base.units import count

if TYPE_CHECKING:
    from moesim.cluster import Cluster
    from moesim.placement import Placement
    from moesim.solve import Plan
    from moesim.spec import ModelSpec
    from moesim.trace import Trace


def trace(path: Path, format: str | None, model: str | None, options: Sequence[str] | None) -> Trace:
    """Read a trace in any importable format.

    Raises
    ------
    InputError
        If the file or an option is not what was expected.
    """
    from moesim.trace.formats import read_any

    return read_any(path, format, **format_options(model, options))


def tokens(path: Path, format: str | None, model: str | None, options: Sequence[str] | None) -> Trace:
    """Read a trace to run; where the file holds counts only, tokens are drawn, which the notes of its steps say.

    Raises
    ------
    InputError
        If the file or an option is not what was expected.
    """
    from moesim.trace import draw_tokens

    return draw_tokens(trace(path, format, model, options))


def format_options(model: str | None, options: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of a trace format by name.

    Raises
    ------
    InputError
        If one is not of the form KEY=VALUE.
    """
    values = dict(_key_value(text) for text in options or ())
    return values if model is None else values | {"model": model}


def cluster(
    topology: str,
    sets: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    like: str | None = None,
    degrade: Sequence[str] | None = None,
) -> Cluster:
    """Read a cluster and make the what-if edits that were asked for; its name then says that it was edited."""
    from moesim.cluster import Cluster

    found = Cluster.read(topology, **({} if like is None else {"like": like}))
    asked = edits(sets, without, degrade)
    if not any(asked.values()):
        return found
    changed = found.edit(asked["set"], tuple(asked["without"]), asked["degrade"])
    if changed == found or changed.name != found.name:
        return changed
    # figures of a preset that was edited would be read as figures of the preset
    name = f"{found.name}-edited"
    return dataclasses.replace(changed, name=name, description=changed.description.model_copy(update={"name": name}))


def edits(sets: Sequence[str] | None, without: Sequence[str] | None, degrade: Sequence[str] | None) -> dict[str, Any]:
    """Return the what-if edits that were asked for: ``set`` and ``degrade`` by name, ``without`` as a list."""
    from moesim.cluster.edit import assignment

    return {
        "set": dict(assignment(text) for text in sets or ()),
        "without": list(without or ()),
        "degrade": dict(_part(text) for text in degrade or ()),
    }


def _part(text: str) -> tuple[str, float]:
    name, _, part = text.rpartition("=")
    try:
        return name, float(part)
    except ValueError:
        raise InputError(f"--degrade: expected NAME=PART such as node1.nic3=0.5, got {text!r}") from None


def group(
    topology: str,
    ranks: int | None = None,
    sets: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    like: str | None = None,
    degrade: Sequence[str] | None = None,
) -> Cluster:
    """Read a cluster, edit it, and return the sub-cluster of its expert-parallel group."""
    from moesim.cluster import Deployment

    return Deployment(size=ranks).restrict(cluster(topology, sets, without, like, degrade))


def names(text: str) -> list[str]:
    """Return what stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str, kind: type[Any] = int) -> list[Any]:
    """Return the numbers between commas.

    Raises
    ------
    InputError
        If one is none; the message names the option.
    """
    try:
        return [kind(name) for name in names(text)]
    except ValueError:
        raise InputError(f"{option}: expected numbers with commas between them, such as 4,16, got {text!r}") from None


def split(whole: Cluster, first: int | None) -> list[Cluster]:
    """Return the whole cluster, or its first ranks and the others.

    Raises
    ------
    InputError
        If nothing is left for the others.
    """
    if first is None:
        return [whole]
    if not 0 < first < whole.ranks:
        raise InputError(
            f"--prefill-ranks: expected 1 to {whole.ranks - 1} of {count(whole.ranks, 'rank')}, got {first}"
        )
    return [whole.restrict(range(first)), whole.restrict(range(first, whole.ranks))]


def slots(given: int | None, routing: Trace, cluster: Cluster) -> int:
    """Return the slots a rank that were asked for, or the fewest that hold all experts, and one more."""
    from moesim.study import fewest_slots

    return fewest_slots(routing.spec.experts, cluster.ranks) + 1 if given is None else given


def dims(name: str | None) -> ModelSpec | None:
    """Return the model at whose dimensions routing is replayed, if one was named."""
    from moesim.spec import ModelSpec

    return None if name is None else ModelSpec.find(name)


def plan_or_placement(path: Path, *, ranks: int | None = None, spec: ModelSpec | None = None) -> Plan | Placement:
    """Read a plan, or a placement in any format.

    Parameters
    ----------
    path
        The file.
    ranks, spec
        What a placement file may not say itself.

    Raises
    ------
    FormatError
        If the file is neither.
    """
    from moesim.solve import Plan

    return Plan.read(path) if is_plan(path) else placement(path, None, ranks=ranks, spec=spec)


def placement(path: Path, format: str | None, *, ranks: int | None, spec: ModelSpec | None) -> Placement:
    """Read a placement in any format."""
    from moesim.placement import Placement

    return Placement.read(path, format, ranks=ranks, spec=spec)


def placement_of(thing: Plan | Placement) -> Placement:
    """Return the placement of a plan, or the placement itself."""
    from moesim.placement import Placement

    return thing if isinstance(thing, Placement) else thing.placement


def is_plan(path: Path) -> bool:
    """Return whether a file says that it is a plan.

    Raises
    ------
    FormatError
        If there is no such file.
    """
    if not path.is_file():
        raise FormatError(path, "", "no such file; give a plan written by `moesim solve -o`, or a placement")
    with path.open("rb") as file:
        return b'"moesim-plan/' in file.read(256)


def writable(*paths: Path | None) -> None:
    """Check that files can be written, before work that takes minutes.

    Raises
    ------
    InputError
        If the folder of one does not exist, or one is a folder itself.
    """
    for path in paths:
        if path is not None and path.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it first")


def folder(path: Path | None) -> None:
    """Check that a folder is there or can be made, before work that takes minutes.

    Raises
    ------
    InputError
        If it is a file, or its own folder does not exist.
    """
    if path is not None and path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; name a folder")
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise InputError(f"--format-option: expected KEY=VALUE, got {text!r}")
    if key == "layers" and value.replace(",", "").isdecimal():
        value = f"[{value}]"
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
