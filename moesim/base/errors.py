"""The errors a user can cause, each one line long and saying what to do.

```
MoesimError
├── InputError        a file or a value is not what was expected (exit code 1)
│   ├── FormatError   a file: names the file and the place in it
│   ├── TooShort      a trace holds too few tokens; the advice may be another where there are other options
│   └── UnknownName   no such solver, policy, preset, ...
├── MissingExtra      an optional package is not installed
└── Infeasible        proven: no placement satisfies the constraints (exit code 3)
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class MoesimError(Exception):
    """Base of every error that a user, not a bug, causes."""

    exit_code = 1


class InputError(MoesimError):
    """A value is not what was expected."""


class FormatError(InputError):
    """A file does not hold what its format says.

    Parameters
    ----------
    path
        The file.
    place
        Where in the file: a key, a row, a line.
    problem
        What was expected, what was found, what to do.
    """

    def __init__(self, path: str | Path, place: str, problem: str) -> None:
        self.path, self.place, self.problem = str(path), place, problem
        where = f"{path}: {place}" if place else f"{path}"
        # a key of the file may hold anything, and an error is one line
        super().__init__(" ".join(f"{where}: {problem}".splitlines()))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.path, self.place, self.problem))


class TooShort(InputError):
    """A trace, or a part of it, holds too few tokens for a step.

    Parameters
    ----------
    problem
        What was expected and what was found.
    advice
        What to do; who has other options than the usual ones raises the error anew with other advice.
    """

    def __init__(self, problem: str, advice: str) -> None:
        self.problem, self.advice = problem, advice
        super().__init__(f"{problem}; {advice}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problem, self.advice))


class UnknownName(InputError):
    """A name is not in a registry; the message suggests the nearest ones, and what else may be given."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known, self.hint = kind, name, sorted(known), hint
        close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        near = f"did you mean {close[0]!r}? " if close else ""
        more = f"; {hint}" if hint else ""
        super().__init__(f"unknown {kind} {name!r}: {near}choose one of {', '.join(self.known)}{more}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.kind, self.name, self.known, self.hint))


class MissingExtra(MoesimError):
    """An optional dependency is needed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed: run  pip install 'moesim[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.package, self.extra))


class Infeasible(MoesimError):
    """Proven: nothing satisfies the constraints; the message says which one cannot hold."""

    exit_code = 3
