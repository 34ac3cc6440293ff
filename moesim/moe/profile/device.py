"""The device that is measured, as its driver names it, and everything a measurement must say of where it was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from moesim.base.errors import InputError
from moesim.base.version import VERSION
from moesim.moe.kernels import interpreted


@dataclass(frozen=True)
class Device:
    """A device under measurement.

    Parameters
    ----------
    name
        As the driver gives it; of a CPU that and the word CPU, so that no table of it passes for a GPU's.
    gpu
        Whether it is one.
    processors
        Multiprocessors; cores of a CPU.
    cache_bytes
        Size of the last cache (L2 of a GPU); what is measured must not start in it.
    """

    torch: torch.device
    name: str
    gpu: bool
    processors: int
    cache_bytes: int
    fp8: bool


def find_device(name: str) -> Device:
    """Return the device to measure.

    Raises
    ------
    InputError
        If it is absent, or Triton is set to interpret, which measures nothing.
    """
    if interpreted():
        raise InputError("TRITON_INTERPRET is set: an interpreter's times are no device's; unset it to measure")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: expected cuda, cuda:N or cpu") from None
    if device.type == "cpu":
        return Device(device, f"CPU, {_cpu_name()}", False, torch.get_num_threads(), 64 * 2**20, False)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(
            f"no GPU for device {name!r} (torch {torch.__version__}); run on one, or try the command out with "
            "--device cpu, whose tables say CPU"
        )
    facts = torch.cuda.get_device_properties(device)
    capability = torch.cuda.get_device_capability(device)
    return Device(device, facts.name, True, facts.multi_processor_count, facts.L2_cache_size, capability >= (8, 9))


def provenance(device: Device) -> dict[str, str]:
    """Return device, driver, versions, command, commit and date, as text."""
    facts = {
        "device": device.name,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "moesim": VERSION,
        "commit": commit(),
        "command": " ".join(["moesim", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if device.gpu:
        facts["cuda"] = str(torch.version.cuda)
        facts["driver"] = _driver()
    return facts


def commit() -> str:
    """Return the commit of the source this runs from: of the variable MOESIM_COMMIT, of git, or unknown."""
    root = Path(__file__).parents[3]
    return (
        os.environ.get("MOESIM_COMMIT", "")
        or _said(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
        or "unknown"
    )


def _driver() -> str:
    lines = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
    return lines[0].strip() if lines else "unknown"


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
