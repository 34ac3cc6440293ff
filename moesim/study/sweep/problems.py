"""What is wrong with a study, in the words of the user's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from moesim.base.errors import UnknownName

_WANTED: Final = {
    "int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "list": "a list",
    "dict": "a table", "model": "a table",
}  # fmt: skip
"""What the kinds of pydantic's errors begin with, and what was expected there."""
_MOST: Final = 60
"""Characters of what was found."""


def first_problem(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Return the place and the words of the first thing that is wrong.

    Parameters
    ----------
    model
        What the data were checked against: it knows the keys that there are.
    """
    first = error.errors(include_url=False)[0]
    # of a value that may be of several types, the last part names one of them
    location = [part for part in first["loc"] if part not in _WANTED and part != "str"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
    kind, found = str(first["type"]), repr(first["input"])[:_MOST]
    if kind == "missing":
        return place, "missing; add it"
    if kind == "extra_forbidden":
        return place, str(UnknownName("key", str(location[-1]), _keys(model, location[:-1])))
    expected = first.get("ctx", {}).get("expected") or _WANTED.get(kind.partition("_")[0])
    if expected is not None:
        return place, f"expected {expected}, found {found}"
    return place, f"{first['msg'][0].lower()}{first['msg'][1:]}, found {found}"


def _keys(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _inner(model.model_fields[part].annotation) or model
    return [*model.model_fields]


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field, a list or an alternative holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for one in get_args(annotation) if (inner := _inner(one)) is not None), None)
