"""The phases of a layer, in the order in which a token meets them."""

from __future__ import annotations

from typing import Final

ATTENTION, SHARED, DISPATCH, EXPERTS, COMBINE = range(5)

PHASES: Final = ("attention", "shared", "dispatch", "experts", "combine")
"""Names by code: attention and gate, shared expert, dispatch, routed experts, combine."""
