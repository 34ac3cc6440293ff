"""Device code through the real compiler, for a Hopper GPU that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'moesim[gpu]'")


def compiled(*options: str) -> list[dict]:
    # the interpreter replaces the compiler in this process
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "moesim.moe.kernels.compile", "--json", *options],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return json.loads(done.stdout)


def test_every_kernel_compiles_for_hopper():
    rows = compiled("--first")
    assert len(rows) == 17
    assert all(row["fits"] for row in rows)


@pytest.mark.slow
def test_every_tile_compiles_and_large_ones_use_hopper_s_matrix_instruction():
    rows = compiled()
    large = [row for row in rows if row["tile"].startswith(("rows 64", "rows 128"))]
    assert large
    assert all(row["products"] == "wgmma" for row in large)
