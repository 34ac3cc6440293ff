"""What the machine is and has: device, driver, versions, and the packages that later phases need."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from moesim.base.errors import MissingExtra, MoesimError
from moesim.base.files import write_text

NEEDED: Final = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "numba",
    "pyarrow",
    "pydantic",
    "tokenizers",
    "safetensors",
    "rich",
    "typer",
    "pytest",
    "hypothesis",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a package or the device is missing."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.gpu_run.facts", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        for name in NEEDED:
            try:
                importlib.import_module(name)
            except ImportError:
                raise MissingExtra(name, "gpu,dev") from None
        from moesim.moe.profile.device import find_device, provenance

        device = find_device(options.device)
        facts = {
            "gpu": device.gpu,
            "processors": device.processors,
            "cache_bytes": device.cache_bytes,
            "fp8": device.fp8,
        }
        write_text(options.out, json.dumps(provenance(device) | facts, indent=1) + "\n")
    except MoesimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
