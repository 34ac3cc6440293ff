"""``python -m moesim``."""

from __future__ import annotations

from moesim.cli import main

if __name__ == "__main__":
    main()
