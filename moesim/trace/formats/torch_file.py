"""Files of ``torch.save``: read as plain data only, never as code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError, MissingExtra
from moesim.trace.formats.common import one_line


def pickled_names(path: str | Path) -> bytes:
    """Return the pickle of a file as bytes, without unpickling it, to look for names in; empty if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return archive.read(inner) if inner else b""
    except Exception:  # damaged archives raise nearly everything, and a sniff must not
        return b""


def load(path: str | Path) -> Any:
    """Return what a file holds, tensors as numpy arrays.

    Raises
    ------
    MissingExtra
        If torch is not installed.
    FormatError
        If the file is damaged, or holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise FormatError(path, "", "no such file; give the path of a recording")
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "gpu") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _plain(content, torch.Tensor)
    except MemoryError:
        raise FormatError(path, "", "does not fit the memory; record a shorter run") from None
    except Exception as error:  # the restricted unpickler raises whatever damaged bytes lead it to
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise FormatError(
                path, "", "holds more than tensors and plain values, and code in a file is never run; save tensors only"
            ) from None
        # what torch says of it is a page of advice that does not apply here
        reason = "its pickle is damaged" if isinstance(error, pickle.UnpicklingError) else one_line(error)
        raise FormatError(path, "", f"not a complete file of tensors ({reason}); save or copy it again") from None


def _plain(value: Any, tensor: type) -> Any:
    if isinstance(value, tensor):
        plain = value.detach()  # type: ignore[attr-defined]
        # numpy knows no bfloat16, and every one of its values is a float32
        return (plain.float() if str(plain.dtype) == "torch.bfloat16" else plain).numpy()
    if isinstance(value, dict):
        return {key: _plain(item, tensor) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, tensor) for item in value]
    return value
