"""Scores: how far the model is from what was measured, per table and role, beside the null predictor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.validate.rows import Case, Skip


@dataclass(frozen=True)
class Score:
    """Errors of one table and role; ``mape``, ``bias`` and ``null_mape`` are fractions.

    ``bias`` is the mean signed error, more than zero where the model is slow. ``worst`` holds the cases farthest off.
    """

    table: str
    role: str
    rows: int
    mape: float
    bias: float
    null_mape: float
    worst: tuple[Case, ...]


@dataclass(frozen=True)
class Result:
    """Everything that was compared, and how many rows were not, by table and reason."""

    cases: tuple[Case, ...]
    skipped: tuple[tuple[str, str, int], ...]

    @property
    def scores(self) -> list[Score]:
        """One score per table and role, tables in the order of their first case, held-out rows last."""
        groups: dict[str, dict[str, list[Case]]] = {}
        for case in self.cases:
            groups.setdefault(case.table, {}).setdefault(case.role, []).append(case)
        return [score(cases) for roles in groups.values() for _, cases in sorted(roles.items())]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: rows of scores, and rows left out."""
        names = ("table", "role", "rows", "mape", "bias", "null_mape")
        rows = [
            {name: getattr(score, name) for name in names} | {"worst": [_plain(case) for case in score.worst]}
            for score in self.scores
        ]
        left_out = [{"table": table, "reason": reason, "rows": count} for table, reason, count in self.skipped]
        return {"rows": rows, "left_out": left_out}


def _plain(case: Case) -> dict[str, Any]:
    return {"row": case.label, "measured": case.measured, "predicted": case.predicted, "error": case.error}


def score(cases: Sequence[Case], worst: int = 3) -> Score:
    """Return the score of cases of one table and role."""
    errors = np.array([case.error for case in cases])
    nulls = np.array([case.null_error for case in cases])
    far = np.argsort(-np.abs(errors), kind="stable")[:worst]
    first = cases[0]
    return Score(
        first.table, first.role, len(cases), float(np.abs(errors).mean()), float(errors.mean()),
        float(np.abs(nulls).mean()), tuple(cases[i] for i in far),
    )  # fmt: skip


def result(found: Sequence[Case | Skip]) -> Result:
    """Return cases and counted reasons."""
    reasons = Counter((item.table, item.reason) for item in found if isinstance(item, Skip))
    cases = tuple(item for item in found if isinstance(item, Case))
    return Result(cases, tuple((table, reason, count) for (table, reason), count in sorted(reasons.items())))
