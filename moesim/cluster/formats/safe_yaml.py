"""YAML of strangers: no aliases, no depth, no size that a description of a cluster does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError

_LARGEST = 2**18  # characters
_MOST = 40_000  # names, lists and tables
_DEEPEST = 32


def load_yaml(text: str, path: Path) -> Any:
    """Return the data of a YAML text.

    Raises
    ------
    FormatError
        If it is no YAML, or holds what would make it explode.
    """
    import yaml

    if len(text) > _LARGEST:
        raise FormatError(path, "", f"larger than {_LARGEST // 2**10} KiB of YAML; give one cluster")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # events come one by one; the loader recurses, in C beyond the stack, and aliases make a few lines billions
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=loader)):
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            if number > _MOST:
                raise FormatError(path, f"line {line}", f"more than {_MOST:,} entries; give one cluster")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.AliasEvent) or getattr(event, "value", None) == "<<":
                raise FormatError(path, f"line {line}", "YAML aliases and merge keys have no place here; write it out")
            if depth > _DEEPEST:
                raise FormatError(path, f"line {line}", f"nested deeper than {_DEEPEST} levels")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FormatError(path, "", f"expected YAML: {' '.join(str(error).split())[:200]}") from None
