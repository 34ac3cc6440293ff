"""How to train: the recipe, its files, its learning rate and its optimizer."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch

from moesim.base.errors import FormatError, InputError
from moesim.moe.config import MoeConfig, checked
from moesim.moe.model import MoeModel


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Parameters
    ----------
    tokens
        Length of the run, and of the cosine schedule, unless `minutes` ends it first.
    minutes
        Wall-clock budget; the schedule then follows whichever of the two is further on.
    rows
        Sequences of a batch, a multiple of the number of domains.
    accumulate
        Parts that a batch is cut into, one forward and backward pass each, where it does not fit memory at once.
    learning_rate
        Peak of the cosine schedule after `warmup` steps; it ends at a twentieth.
    balance_rate
        Step of the router biases; it falls with the learning rate, so that the routing settles.
    balance_low, balance_high
        Band of loads, in multiples of the mean, in which the biases of ``sigmoid-bias`` rest.
    balance_loss, z_loss, importance_loss, load_loss
        Coefficients of the auxiliary losses, for routers that have them.
    """

    tokens: int = 8_000_000
    minutes: float | None = None
    rows: int = 8
    accumulate: int = 1
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    balance_rate: float = 1e-2
    balance_low: float = 0.35
    balance_high: float = 2.5
    balance_loss: float = 6e-3
    z_loss: float = 1e-3
    importance_loss: float = 0.1
    load_loss: float = 0.1
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("tokens", "rows", "accumulate", "warmup", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rows % self.accumulate:
            raise InputError(f"accumulate {self.accumulate} must divide the {self.rows} sequences of a batch")

    def coefficient(self, loss: str) -> float:
        """Return the coefficient of an auxiliary loss by its name."""
        return float(getattr(self, f"{loss}_loss"))


def read_settings(path: str | Path) -> tuple[MoeConfig, Recipe]:
    """Read a run's settings: a TOML or JSON file with the tables ``model`` and ``training``, or a model's JSON alone.

    Keys that are not given take their defaults.

    Raises
    ------
    FormatError
        The file is neither, has an unknown key, or a value that does not fit.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, "", f"expected settings in TOML (.toml) or JSON, found {error}") from None
    if isinstance(values, dict) and set(values) <= {"model", "training"}:
        model, training = (values.get(name, {}) for name in ("model", "training"))
        return checked(MoeConfig, model, path, "model"), checked(Recipe, training, path, "training")
    return checked(MoeConfig, values, path, ""), Recipe()


def cosine(progress: float) -> float:
    """Fall from 1 to a twentieth along a cosine while `progress` runs from 0 to 1."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def optimizer_names(model: MoeModel) -> tuple[list[str], list[str]]:
    """Return the names of the parameters that decay (matrices but the embedding) and of those that do not."""
    names = {name: p.dim() >= 2 and "embedding" not in name for name, p in model.named_parameters()}
    return [name for name, decays in names.items() if decays], [name for name, decays in names.items() if not decays]


def make_optimizer(model: MoeModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices but the embedding decay, norms do not."""
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in zip(optimizer_names(model), (recipe.weight_decay, 0.0), strict=True)
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
