"""Few notes instead of many: what all plans share is said once, what differs only in numbers is one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_NUMBER = re.compile(r"\d[\d.,]*")


def merged(lines: Iterable[str]) -> list[str]:
    """Return lines in order; of those that differ only in numbers the first, and how many more there are."""
    alike: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):
        alike.setdefault(_NUMBER.sub("#", line), []).append(line)
    return [first + (f" (and {len(more)} more with other numbers)" if more else "") for first, *more in alike.values()]


def of_plans(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the notes of several plans: those of all once, others after the names of their plans."""
    names: dict[str, list[str]] = {}
    for name, lines in notes.items():
        for line in dict.fromkeys(lines):
            names.setdefault(line, []).append(name)
    return [line if len(plans) == len(notes) else f"{', '.join(plans)}: {line}" for line, plans in names.items()]
