"""Weights on disk: safetensors shards with checksums, the tokenizer and the configuration beside them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from tokenizers import Tokenizer
from torch import Tensor

from moesim.base.errors import FormatError
from moesim.base.files import atomic_path, write_text
from moesim.moe.config import MoeConfig
from moesim.moe.model import MoeModel
from moesim.moe.tokenizer import load_tokenizer

SHARD_BYTES = 12 * 2**20
BUNDLED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Bundle:
    """A model with its tokenizer, where it came from, and the digest of its weights."""

    model: MoeModel
    tokenizer: Tokenizer
    folder: Path
    digest: str


def save_model(model: MoeModel, tokenizer: Tokenizer, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `config.json`, `tokenizer.json`, bfloat16 shards and `weights.json` (shards with their sha256)."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(model.state_dict().items()):
        # biases decide near ties and are tiny: they keep float32
        stored = tensor.detach().cpu().to(torch.bfloat16 if tensor.dim() >= 2 else torch.float32).contiguous()
        if size and size + stored.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = stored
        size += stored.nbytes
    records = []
    for number, shard in enumerate(shards, start=1):
        data = save(shard)
        name = f"model-{number:02d}-of-{len(shards):02d}.safetensors"
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
        records.append({"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    write_text(folder / "config.json", model.config.to_json())
    write_text(folder / "weights.json", json.dumps({"shards": records}, indent=2) + "\n")


def load_model(folder: str | Path = BUNDLED, *, device: str = "cpu") -> Bundle:
    """Load a model written by `save_model`; without a folder, the bundled one.

    Returns
    -------
    The model in float32 and in evaluation mode, with its tokenizer.

    Raises
    ------
    FormatError
        A file is absent or malformed, a checksum differs, or tensors are missing.
    """
    folder = Path(folder)
    config = MoeConfig.read(folder / "config.json")
    index = folder / "weights.json"
    try:
        records = [(str(r["file"]), str(r["sha256"])) for r in json.loads(index.read_text("utf-8"))["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(index, "shards", f"expected a list of shards with file and sha256, found {error!r}") from None
    state: dict[str, Tensor] = {}
    for name, expected in records:
        try:
            data = (folder / Path(name).name).read_bytes()
        except OSError as error:
            raise FormatError(folder / name, "", f"cannot be read: {error.strerror}; fetch the file again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise FormatError(
                folder / name, "", f"sha256 {found[:12]}... differs from {expected[:12]}... in {index.name}: "
                "the file is damaged or was replaced; fetch it again"
            )  # fmt: skip
        state.update(load(data))
    model = MoeModel(config)
    missing = sorted(set(model.state_dict()) ^ set(state))
    if missing:
        raise FormatError(
            index, "tensors", f"do not match the model of {folder / 'config.json'}: {', '.join(missing[:3])}"
        )
    for name, tensor in model.state_dict().items():
        if tensor.shape != state[name].shape:
            raise FormatError(
                index, "tensors", f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)} "
                f"by {folder / 'config.json'}"
            )  # fmt: skip
    model.load_state_dict(state)
    digest = hashlib.sha256("".join(sha for _, sha in records).encode()).hexdigest()[:16]
    return Bundle(model.eval().to(device), load_tokenizer(folder / "tokenizer.json"), folder, digest)
