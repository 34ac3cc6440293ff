"""A training run: steps that one process or several take together, and checkpoints that do not remember how many."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesim.base.errors import FormatError, InputError
from moesim.base.files import atomic_path
from moesim.base.units import count
from moesim.moe.config import MoeConfig
from moesim.moe.data import Batches
from moesim.moe.health import health
from moesim.moe.model import MoeModel
from moesim.moe.parallel import ALONE, Group
from moesim.moe.recipe import Recipe, cosine, make_optimizer, optimizer_names

# What a recipe may change between checkpoint and resumption without changing the run.
_FREE = {"save_every"}


class Run:
    """A training run that can stop after any step and go on from its checkpoint as if it had not.

    Parameters
    ----------
    group
        The processes that train together; each takes an equal part of the rows and holds an equal part of the experts.
    """

    def __init__(
        self, config: MoeConfig, recipe: Recipe, batches: Batches, *, device: str | torch.device = "cpu",
        group: Group = ALONE,
    ) -> None:  # fmt: skip
        if recipe.rows % (group.size * recipe.accumulate):
            raise InputError(
                f"a batch of {count(recipe.rows, 'sequence')} does not divide into processes times parts, "
                f"{group.size} x {recipe.accumulate}; choose other rows"
            )
        self.recipe, self.batches, self.device, self.group = recipe, batches, torch.device(device), group
        self.model = MoeModel(config, group).initialise(recipe.seed).to(self.device).train()
        self.sharded = self.model.expert_parameters() if group.size > 1 else set()
        self.optimizer = make_optimizer(self.model, recipe)
        self.step, self.elapsed_s = 0, 0.0
        self.step_tokens = recipe.rows * config.context

    @property
    def rows(self) -> range:
        """Rows of each batch that this process takes."""
        return range(self.recipe.rows)[self.group.share(self.recipe.rows)]

    @property
    def progress(self) -> float:
        """Share of the run that is done, by tokens or by the clock, whichever is further on."""
        by_tokens = self.step * self.step_tokens / self.recipe.tokens
        by_clock = self.elapsed_s / (60 * self.recipe.minutes) if self.recipe.minutes else 0.0
        return max(by_tokens, by_clock)

    def advance(self) -> dict[str, Any]:
        """Take one step and return its metrics, the same on every process."""
        start = time.perf_counter()
        recipe, decay = self.recipe, cosine(self.progress)
        rate = recipe.learning_rate * min(1.0, (self.step + 1) / recipe.warmup) * decay
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._backward()
        norm = self._finish_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for router in self.model.routers():
            router.settle(recipe.balance_rate * decay, low=recipe.balance_low, high=recipe.balance_high)
        self.step += 1
        # every process must agree on when the clock ends the run
        wall_s = float(self.group.mean(torch.tensor(time.perf_counter() - start, device=self.device)))
        self.elapsed_s += wall_s
        return {
            "step": self.step,
            "tokens": self.step * self.step_tokens,
            "loss": round(losses.pop("loss"), 4),
            "auxiliary": {name: round(value, 4) for name, value in losses.items()},
            "learning_rate": rate,
            "gradient_norm": round(norm, 4),
            **health(self.model.routers()),
            "tokens_per_s": round(self.step_tokens / wall_s, 1),
            "elapsed_s": round(self.elapsed_s, 1),
        }

    def _backward(self) -> dict[str, float]:
        """Run all parts of the batch forward and backward; return the mean losses over parts and processes."""
        inputs, targets = self.batches[self.step]
        rows, parts = self.rows, self.recipe.accumulate
        each = len(rows) // parts
        sums: dict[str, Tensor] = {}
        for part in (rows[i * each : (i + 1) * each] for i in range(parts)):
            asked, wanted = (t[part.start : part.stop].to(self.device) for t in (inputs, targets))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits, extra = self.model(asked, draw=(self.recipe.seed, self.step), rows=tuple(part))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
            total = loss + sum(self.recipe.coefficient(name) * value for name, value in extra.items())
            (total / parts).backward()
            for name, value in {"loss": loss, **extra}.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach() / parts
        means = self.group.mean(torch.stack(list(sums.values())))
        return dict(zip(sums, means.tolist(), strict=True))

    def _finish_gradients(self) -> float:
        """Average gradients over processes and clip their norm to 1; return the norm before."""
        own, common = list[Tensor](), list[Tensor]()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                (own if name in self.sharded else common).append(parameter.grad)
        if self.group.size > 1:
            # an expert has the gradients of all processes' tokens already, a sum where a mean is wanted
            for grad in own:
                grad /= self.group.size
            flat = self.group.mean(torch.cat([grad.flatten() for grad in common]))
            for grad, mean in zip(common, torch.split(flat, [grad.numel() for grad in common]), strict=True):
                grad.copy_(mean.view_as(grad))
        squares = nn.utils.get_total_norm(common).square()
        if own:
            squares = squares + self.group.mean(nn.utils.get_total_norm(own).square()) * self.group.size
        norm = squares.sqrt()
        nn.utils.clip_grads_with_norm_(self.model.parameters(), 1.0, norm)
        return float(norm)

    def whole_model(self) -> dict[str, Tensor]:
        """Return the state of the model with all experts, on every process."""
        return {name: self._whole(name, value) for name, value in self.model.state_dict().items()}

    def _whole(self, name: str, value: Tensor) -> Tensor:
        return self.group.gather(value) if name in self.sharded else value

    def _part(self, name: str, value: Tensor) -> Tensor:
        return value[self.group.share(len(value))].clone() if name in self.sharded else value

    def _optimizer_state(self, move: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return the optimizer's state with its moments passed through `move` (name, tensor)."""
        names = [name for group in optimizer_names(self.model) for name in group]
        moved = {
            number: {
                key: move(names[number], value) if key.startswith("exp_avg") else value for key, value in own.items()
            }
            for number, own in state["state"].items()
        }
        return {**state, "state": moved}

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically; the first process writes, all must call."""
        state = {
            "config": asdict(self.model.config),
            "recipe": asdict(self.recipe),
            "model": self.whole_model(),
            "optimizer": self._optimizer_state(self._whole, self.optimizer.state_dict()),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        if self.group.rank == 0:
            with atomic_path(path) as temporary:
                torch.save(state, temporary)
        self.group.wait()

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same model and recipe, whatever the number of processes that wrote it.

        Raises
        ------
        InputError
            The checkpoint was made with another configuration or recipe, or is none.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            given = {name: dict(state[name]) for name in ("config", "recipe")}
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FormatError(path, "", f"not a checkpoint of a run ({first}); delete it to start anew") from None
        for name, mine in (("config", asdict(self.model.config)), ("recipe", asdict(self.recipe))):
            changed = [key for key, value in mine.items() if given[name].get(key) != value and key not in _FREE]
            if changed:
                raise InputError(f"{path}: made with another {name} ({', '.join(changed)}); delete it or restore those")
        self.model.load_state_dict({name: self._part(name, value) for name, value in state["model"].items()})
        self.optimizer.load_state_dict(self._optimizer_state(self._part, state["optimizer"]))
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
