"""The version, where every room can import it without going up the river."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
