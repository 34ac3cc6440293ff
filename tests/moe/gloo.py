"""Training on several gloo processes: `python gloo.py SIZE FOLDER` forks them; what they found is written to FOLDER."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moesim.moe.config import MoeConfig
from moesim.moe.corpus import DOMAINS
from moesim.moe.data import Batches
from moesim.moe.evaluate import domain_losses
from moesim.moe.parallel import Group, Meeting, join
from moesim.moe.recipe import Recipe
from moesim.moe.record import StepRecorder
from moesim.moe.run import Run

CONFIG = MoeConfig(
    vocabulary=300, layers=2, hidden=16, heads=2, experts=8, top_k=2, intermediate=8, context=16, groups=4
)
RECIPE = Recipe(tokens=10**6, rows=8, warmup=2, seed=5, balance_loss=0.05, balance_low=0.9, balance_high=1.1)
ROUTERS = ("topk-softmax", "noisy-topk", "switch", "sigmoid-bias", "deepseek-v3", "expert-choice", "hash")
STEPS = 4


def batches(one_word: bool = False) -> Batches:
    rng = np.random.default_rng(0)
    streams = {domain: np.full(200, 7) if one_word else rng.integers(0, 300, 200) for domain in DOMAINS}
    return Batches(streams, rows=8, length=16, seed=5)


def scenario(group: Group, folder: Path) -> dict:
    """Train with every router, with parts, from and to checkpoints, and record; return what came out."""
    found = {}
    for router in ROUTERS:
        run = Run(replace(CONFIG, router=router), RECIPE, batches(), group=group)
        metrics = [run.advance() for _ in range(STEPS)]
        found[router] = {"metrics": metrics, "model": run.whole_model()}
    # every token is the same, so that all of a layer's rows go to one expert of one process
    run = Run(replace(CONFIG, router="hash", top_k=1), RECIPE, batches(one_word=True), group=group)
    found["one expert"] = {"metrics": [run.advance() for _ in range(2)], "model": run.whole_model()}

    run = Run(CONFIG.dense(), RECIPE, batches(), group=group)
    found["no experts"] = {"metrics": [run.advance() for _ in range(2)], "model": run.whole_model()}
    run = Run(CONFIG, replace(RECIPE, accumulate=2), batches(), group=group)
    found["parts"] = {"metrics": [run.advance() for _ in range(STEPS)], "model": run.whole_model()}

    with StepRecorder(folder / f"of-{group.size}.parquet", Run(CONFIG, RECIPE, batches(), group=group), every=2,
                      domains=DOMAINS, keep_weights=True) as recorder:  # fmt: skip
        for _ in range(3):
            recorder.advance()
    run = recorder.run
    run.save(folder / f"of-{group.size}.pt")
    # as on a GPU: rows travel in bfloat16, and gradients come back so
    inputs, targets = batches()[0]
    run.model.eval()
    own = slice(run.rows.start, run.rows.stop)
    with torch.autocast("cpu", torch.bfloat16):
        logits = run.model(inputs[own]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets[own].flatten())
    loss.backward()
    found["bfloat16"] = group.mean(torch.stack([loss, run._finish_gradients() * torch.ones(())]).detach()).tolist()
    run.optimizer.zero_grad()
    run.model.train()

    tokens = {domain: np.random.default_rng(i).integers(0, 300, 70) for i, domain in enumerate(DOMAINS)}
    found["evaluation"] = domain_losses(run.model, tokens, windows=5, group=group)

    whole = [run.advance()["loss"] for _ in range(2)]
    resumed = Run(CONFIG, RECIPE, batches(), group=group)
    resumed.resume(folder / f"of-{group.size}.pt")
    found["went on"] = whole, [resumed.advance()["loss"] for _ in range(2)]
    same = (torch.equal(a, b) for a, b in zip(run.model.parameters(), resumed.model.parameters(), strict=True))
    found["bit-equal"] = all(same)
    if group.size > 1:
        # written by one process, before these were started
        other = Run(CONFIG, RECIPE, batches(), group=group)
        other.resume(folder / "of-1.pt")
        found["from one process"] = [other.advance()["loss"] for _ in range(2)]
    return found


def main(size: int, folder: Path) -> int:
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            code = 1
            try:
                torch.set_num_threads(1)
                with join("cpu", Meeting(rank, size, folder / f"meet-{size}")) as (group, _):
                    found = scenario(group, folder)
                torch.save(found, folder / f"found-{size}-{rank}.pt")
                code = 0
            except BaseException:
                # a forked child must not unwind into the parent's code
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
