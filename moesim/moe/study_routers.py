"""The routers side by side: `python -m moesim.moe.study_routers --corpus corpus -o routers`.

Trains one small model per scheme with the same budget, and records what each makes of the validation part: loss,
drops, imbalance, and bytes between nodes with the experts laid out in order on a cluster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moesim.base.errors import MoesimError
from moesim.base.files import write_text
from moesim.capture import capture
from moesim.cluster import Cluster
from moesim.moe.cache import Cache, Past
from moesim.moe.config import MoeConfig
from moesim.moe.corpus import DOMAINS, read_corpus
from moesim.moe.data import Batches, streams
from moesim.moe.model import MoeModel
from moesim.moe.recipe import Recipe
from moesim.moe.run import Run
from moesim.moe.spec import spec_of
from moesim.moe.study_page import figure, table
from moesim.moe.train import ensure_tokenizer
from moesim.moe.weights import save_model
from moesim.simulate import simulate
from moesim.solve import solve
from moesim.spec import ModelSpec
from moesim.trace import Trace, statistics

MODEL = MoeConfig(
    vocabulary=2048, layers=4, hidden=64, heads=4, experts=32, top_k=4, shared_experts=1, intermediate=32, context=256,
    routed_scale=1.0, groups=4, group_limit=2,
)  # fmt: skip
"""The bundled architecture at a size that a CPU trains in a minute or two."""

RECIPE = Recipe(tokens=400_000, rows=8, balance_loss=1e-2, warmup=30)

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({"router": "dense"}, {}),
    "noisy-topk": ({"router": "noisy-topk"}, {}),
    "softmax-topk": ({"router": "softmax-topk"}, {}),
    "topk-softmax": ({"router": "topk-softmax"}, {}),
    "topk-softmax, no balance loss": ({"router": "topk-softmax"}, {"balance_loss": 0.0}),
    "topk-softmax, no shared expert": ({"router": "topk-softmax", "shared_experts": 0}, {}),
    "topk-softmax, capacity 1.25": ({"router": "topk-softmax", "capacity_factor": 1.25}, {}),
    "topk-softmax, capacity 1.25 of a sequence": (
        {"router": "topk-softmax", "capacity_factor": 1.25, "compete": "sequence"},
        {},
    ),
    "switch, capacity 1.25": ({"router": "switch"}, {}),
    "switch, capacity 1.25 of a sequence": ({"router": "switch", "compete": "sequence"}, {}),
    "expert-choice": ({"router": "expert-choice"}, {}),
    "expert-choice, within a sequence": ({"router": "expert-choice", "compete": "sequence"}, {}),
    "sigmoid-bias": ({"router": "sigmoid-bias"}, {"balance_loss": 6e-3}),
    "deepseek-v3": ({"router": "deepseek-v3"}, {"balance_loss": 1e-4, "balance_rate": 1e-3}),
    "hierarchical": ({"router": "hierarchical"}, {}),
    "hash": ({"router": "hash"}, {}),
    "sequence": ({"router": "sequence"}, {}),
}
"""Name of a row to what differs from `MODEL` and from `RECIPE`."""


def windows_of(tokens: Mapping[str, NDArray[np.int64]], count: int, length: int) -> NDArray[np.int64]:
    """Return the first `count` windows of each domain, domains in turn, [count x domains, length + 1]."""
    cut = [[s[i * length : (i + 1) * length + 1] for i in range(count)] for s in tokens.values()]
    return np.stack([window for round_ in zip(*cut, strict=True) for window in round_])


@torch.inference_mode()
def whole_loss(model: MoeModel, windows: NDArray[np.int64], ranks: int) -> tuple[float, Trace]:
    """Return the loss on whole sequences (nats per token), and the routing: a step is one sequence on each rank."""
    total, length = 0.0, windows.shape[1] - 1
    with capture(model, keep_weights=False) as recorder:
        for first in range(0, len(windows), ranks):
            batch = torch.from_numpy(windows[first : first + ranks])
            logits = model(batch[:, :-1]).logits
            total += float(nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        routes, _ = recorder.take()
    number = np.repeat(np.arange(len(windows)), length)
    most = max(1, int((routes >= 0).sum(-1).max()))
    spec = spec_of(model.config)
    narrow = bool((routes[..., most:] < 0).all())
    trace = Trace(
        replace(spec, top_k=most) if narrow else spec,
        routes[..., :most] if narrow else routes,
        step=number // ranks,
        source=number % ranks,
        request=number,
        position=np.tile(np.arange(length), len(windows)),
        domain=number % len(DOMAINS),
        domains=DOMAINS,
        origin={"captured_by": "python -m moesim.moe.study_routers", "router": model.config.router, "synthetic": False},
    )
    return total / (len(windows) * length), trace


@torch.inference_mode()
def decoded_loss(model: MoeModel, windows: NDArray[np.int64]) -> float:
    """Return the loss where every token is fed alone, all sequences side by side: nobody can see ahead."""
    batch = torch.from_numpy(windows)
    rows, length = batch.shape[0], batch.shape[1] - 1
    cache, slots, total = Cache(model.config, rows), torch.arange(rows), 0.0
    for position in range(length):
        past = Past(cache, slots, torch.full((rows,), position), 1)
        logits = model(batch[:, position : position + 1], past).logits[:, 0]
        total += float(nn.functional.cross_entropy(logits, batch[:, position + 1], reduction="sum"))
    return total / (rows * length)


def measure(model: MoeModel, windows: NDArray[np.int64], topology: str) -> dict[str, Any]:
    """Return the figures of one trained model, see the columns of `moesim.moe.study_page`."""
    cluster = Cluster.read(topology)
    loss, trace = whole_loss(model, windows, cluster.ranks)
    few = windows[: 8 * len(DOMAINS)]
    config = model.config
    picks = (np.asarray(trace.routes) >= 0).sum(-1)
    asked = config.top_k if config.router == "expert-choice" else trace.spec.top_k
    slots = -(-config.experts // cluster.ranks)
    plan = solve(trace, cluster, slots_per_rank=slots, solver="contiguous", seed=0)
    report = simulate(trace, cluster, plan, transport="hierarchical", dims=ModelSpec.preset("deepseek-v3"))
    token_layers = float(report.step_tokens.mean()) * trace.layers
    loads = np.sort(trace.loads, axis=1)[:, ::-1] / trace.loads.mean(axis=1, keepdims=True)
    domains = trace.domain_loads()
    return {
        "router": config.router,
        "loss": loss,
        "loss_few": whole_loss(model, few, cluster.ranks)[0],
        "loss_decoded": decoded_loss(model, few),
        "picks": float(picks.mean()),
        "dropped": float((picks == 0).mean()) if config.router == "expert-choice" else float(1 - picks.mean() / asked),
        "max_over_mean": float(statistics(trace).max_over_mean.mean()),
        "domain_max_over_mean": float(np.median((domains.max(-1) / domains.mean(-1)).mean(-1))),
        "imbalance": report.batch_imbalance,
        "node_bytes": report.cross_node_bytes / token_layers,
        "all_to_all_us": report.all_to_all_s * 1e6 / trace.layers,
        "sorted_loads": [round(float(x), 3) for x in loads.mean(axis=0)],
    }


def study(
    corpus: str | Path, out: str | Path, *, variants: Sequence[str] | None = None, seeds: Sequence[int] = (0,),
    tokens: int = RECIPE.tokens, windows: int = 24, topology: str = "h100-4x8-rail",
) -> list[dict[str, Any]]:  # fmt: skip
    """Train and measure every variant with every seed; rows that `out` holds already are kept.

    Parameters
    ----------
    corpus
        Folder written by `python -m moesim.moe.corpus`.
    out
        Folder for `routers.json`, `routers.md`, `routers.svg`, and the run of each variant and seed.
    windows
        Sequences of each domain of the validation part that are measured.
    topology
        Cluster on which the experts are laid out in order.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    documents = read_corpus(corpus)
    training_part = [document for document in documents if document.part == "train"]
    tokenizer = ensure_tokenizer(training_part, out / "tokenizer.json", MODEL.vocabulary)
    learnt = streams(training_part, tokenizer)
    held_out = streams([document for document in documents if document.part == "validation"], tokenizer)
    measured = windows_of(held_out, windows, MODEL.context)
    path = out / "routers.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    for seed in seeds:
        for name in variants or VARIANTS:
            if any((row["name"], row["seed"], row["tokens"]) == (name, seed, tokens) for row in rows):
                continue
            changes, training = VARIANTS[name]
            recipe = replace(RECIPE, tokens=tokens, seed=seed, **training)
            batches = Batches(learnt, rows=recipe.rows, length=MODEL.context, seed=seed)
            run = Run(replace(MODEL, **changes), recipe, batches)
            while run.progress < 1.0:
                losses = run.advance()
                if run.step % 50 == 0:
                    sys.stderr.write(f"{name}, seed {seed}: step {run.step}, loss {losses['loss']}\n")
            model = run.model.eval()
            save_model(model, tokenizer, out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}")
            found = measure(model, measured, topology)
            rows.append({"name": name, "seed": seed, "tokens": tokens, "topology": topology, **found})
            write_text(path, json.dumps(rows, indent=1) + "\n")
    rows = [row for row in rows if row["tokens"] == tokens]
    write_text(out / "routers.md", table(rows))
    write_text(out / "routers.svg", figure(rows))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m moesim.moe.study_routers", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by `python -m moesim.moe.corpus`")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the study; resumed if it holds rows")
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="row to make (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each variant (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=RECIPE.tokens, help="of each run (default %(default)s)")
    parser.add_argument("--topology", default="h100-4x8-rail")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        rows = study(
            options.corpus, options.out, variants=options.variant, seeds=range(options.seeds), tokens=options.tokens,
            topology=options.topology,
        )  # fmt: skip
    except MoesimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
