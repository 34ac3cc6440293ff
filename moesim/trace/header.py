"""The header of a trace file: JSON in the file metadata, validated at the rim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from moesim.base.errors import FormatError, InputError
from moesim.spec import ModelSpec

KEY: Final = b"moesim.trace"
"""Key of the header in the file metadata."""
SCHEMA_VERSION: Final = 1
IMPORT: Final = "a trace of another tool is imported with  moesim import FILE -o trace.parquet"
"""Advice for files that are not traces."""


class Header(BaseModel):
    """What a trace file says about itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: int = Field(alias="schema")
    kind: Literal["tokens", "counts"]
    spec: dict[str, Any]
    domains: list[str]
    origin: dict[str, Any]


def read_header(path: str | Path, metadata: Mapping[bytes, bytes]) -> Header:
    """Return the header in the metadata of a file, checked; FormatError where there is none that fits."""
    place = f"metadata {KEY.decode()!r}"
    text = metadata.get(KEY)
    if text is None:
        raise FormatError(path, place, f"expected the header of a trace, found none; {IMPORT}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, place, f"expected JSON, found {error}; write the trace again") from None
    version = data.get("schema") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        found = f"found {version!r}; use the version of moesim that wrote it, or capture again"
        raise FormatError(path, f"{place}, schema", f"expected version {SCHEMA_VERSION}, {found}")
    try:
        return Header.model_validate(data)
    except ValidationError as error:
        raise _first_problem(path, f"{place}, ", error) from None


def read_spec(path: str | Path, header: Header) -> ModelSpec:
    """Return the model of a header, checked; FormatError where it is not a model."""
    place = f"metadata {KEY.decode()!r}, spec"
    try:
        TypeAdapter(ModelSpec).validate_python(header.spec)
        return ModelSpec.from_dict(header.spec)
    except ValidationError as error:
        raise _first_problem(path, f"{place}.", error) from None
    except InputError as error:
        raise FormatError(path, place, f"{error}; write the trace again") from None


def _first_problem(path: str | Path, place: str, error: ValidationError) -> FormatError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return FormatError(path, f"{place}{where}", f"{first['msg']}; write the trace again")
