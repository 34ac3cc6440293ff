"""Messages speak of Python's arguments; on the command line the same things are options."""

from __future__ import annotations

import re
from typing import Final

OPTIONS: Final = {
    "model": "--model",
    "spec": "--model",
    "ranks": "--ranks",
    "like": "--like",
    "kv_tokens": "--kv-tokens",
    "rate": "--rate",
    "requests": "--requests",
}
"""Arguments that verbs have options of their own for."""

FORMAT_OPTIONS: Final = frozenset((
    "counts", "dims", "domain", "experts", "iteration", "layers", "numbering", "origin", "phase", "request_tokens",
    "scale", "start",
))  # fmt: skip
"""Arguments of trace formats beside the model: ``--format-option`` gives them."""

_ARGUMENT: Final = re.compile(rf"(?<![\w.\-])({'|'.join(sorted({*OPTIONS, *FORMAT_OPTIONS}))})=(?=[\s,;.)\d\"']|$)")


def as_options(message: str) -> str:
    """Return a message with the options of the command line in place of arguments such as ``model=``."""
    return _ARGUMENT.sub(lambda found: OPTIONS.get(found[1]) or f"--format-option {found[1]}=", message)
