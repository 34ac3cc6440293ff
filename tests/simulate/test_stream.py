"""A trace file is replayed chunk by chunk: the same steps, memory for one chunk."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from moesim.base.errors import InputError, UnknownName
from moesim.simulate import simulate, simulate_file
from moesim.trace import DECODE, PREFILL

from . import worlds


def test_recorded_steps_come_out_as_from_memory_whatever_the_chunk(tmp_path: Path) -> None:
    world = worlds.world(1, tokens_per_rank=20, steps=6)
    n = world.trace.rows
    trace = dataclasses.replace(world.trace, step=np.arange(n) // 80, request=np.arange(n), source=np.arange(n) % 4)
    trace.write(path := tmp_path / "trace.parquet")
    whole = simulate(trace, world.cluster, world.placement)
    for chunk in (90, 200, 10_000):
        parts = simulate_file(path, world.cluster, world.placement, chunk=chunk)
        np.testing.assert_array_equal(parts.step_s, whole.step_s)
        np.testing.assert_array_equal(parts.step_tokens, whole.step_tokens)
        np.testing.assert_allclose(parts.link_bytes, whole.link_bytes)
        assert parts.bottleneck == whole.bottleneck
        assert parts.facts["chunk"] == chunk


def test_packed_steps_use_every_token_but_the_last_few(tmp_path: Path) -> None:
    world = worlds.world(2)
    trace = worlds.trace(np.random.default_rng(0), world.trace.spec, 1010, DECODE, request=1)
    trace.write(path := tmp_path / "trace.parquet")
    report = simulate_file(path, world.cluster, world.placement, chunk=130, tokens_per_rank=10, schedule="two-batch")
    assert report.steps == 25
    assert report.step_tokens.sum() == 1000
    assert any("10 tokens at the end filled no step" in note for note in report.notes)
    with pytest.raises(InputError, match="no step of 4 ranks comes of it"):
        simulate_file(path, world.cluster, world.placement, tokens_per_rank=1000)
    with pytest.raises(InputError, match=r"unknown options \['spans'\]"):
        simulate_file(path, world.cluster, world.placement, spans=True)


def test_noise_is_that_of_the_whole_and_of_no_step_twice(tmp_path: Path) -> None:
    world = worlds.world(1, tokens_per_rank=20, steps=6)
    n = world.trace.rows
    trace = dataclasses.replace(world.trace, step=np.arange(n) // 80, request=np.arange(n), source=np.arange(n) % 4)
    trace.write(path := tmp_path / "trace.parquet")
    how = {"jitter": 0.3, "seed": 5}
    whole = simulate(trace, world.cluster, world.placement, **how)
    parts = simulate_file(path, world.cluster, world.placement, chunk=90, **how)
    np.testing.assert_array_equal(parts.step_s, whole.step_s)


def test_of_several_phases_one_is_chosen(tmp_path: Path) -> None:
    world = worlds.world(3, tokens_per_rank=20, steps=6)
    n = world.trace.rows
    # prompts and answers in turn, token by token, in recorded steps; single prompts fill their steps alone
    phase = np.where(np.arange(n) % 4 < 2, PREFILL, DECODE)
    request = np.where(phase == PREFILL, np.arange(n) // 80, np.arange(n))
    trace = dataclasses.replace(
        world.trace, step=np.arange(n) // 80, request=request, source=np.arange(n) // 4 % 4, phase=phase,
    )  # fmt: skip
    trace.write(path := tmp_path / "trace.parquet")
    for name in ("prefill", "decode"):
        whole = simulate(trace, world.cluster, world.placement, phase=name)
        parts = simulate_file(path, world.cluster, world.placement, chunk=50, phase=name)
        np.testing.assert_array_equal(parts.step_s, whole.step_s)
        assert (parts.facts["phase"], parts.facts["transport"]) == (name, whole.facts["transport"])
    with pytest.raises(InputError, match="holds prefill and decode tokens; say which"):
        simulate_file(path, world.cluster, world.placement)
    with pytest.raises(InputError, match="none of train"):
        simulate_file(path, world.cluster, world.placement, phase="train")
    with pytest.raises(UnknownName, match="did you mean 'decode'"):
        simulate_file(path, world.cluster, world.placement, phase="decod")


def test_steps_without_source_ranks_are_packed_and_no_token_is_lost_or_drawn_twice(tmp_path: Path) -> None:
    world = worlds.world(4)
    trace = worlds.trace(np.random.default_rng(0), world.trace.spec, 1010, DECODE, request=1)
    trace = dataclasses.replace(trace, step=np.arange(1010) // 50)
    trace.write(path := tmp_path / "trace.parquet")
    report = simulate_file(path, world.cluster, world.placement, chunk=130)
    assert report.facts["tokens_per_rank"] == 128
    assert report.step_tokens.tolist() == [512]
    assert any("regrouped: source ranks were not recorded" in note for note in report.notes)
    assert any("498 tokens at the end filled no step" in note for note in report.notes)
    small = simulate_file(path, world.cluster, world.placement, chunk=130, tokens_per_rank=10)
    assert small.step_tokens.sum() == 1000


def test_where_few_requests_are_at_hand_more_is_read_before_any_is_drawn_again(tmp_path: Path) -> None:
    world = worlds.world(5)
    # prompts of 100 tokens: a chunk of 130 holds two, a step of four ranks needs four
    trace = worlds.trace(np.random.default_rng(0), world.trace.spec, 1000, PREFILL, request=100)
    trace.write(path := tmp_path / "trace.parquet")
    report = simulate_file(path, world.cluster, world.placement, chunk=130, tokens_per_rank=30)
    assert not any("resampled" in note for note in report.notes)
    assert 0 < report.step_tokens.sum() <= 1000


def test_steps_that_lie_scattered_are_refused(tmp_path: Path) -> None:
    world = worlds.world(1, tokens_per_rank=20, steps=6)
    n = world.trace.rows
    trace = dataclasses.replace(world.trace, step=np.arange(n) % 6, request=np.arange(n), source=np.arange(n) % 4)
    trace.write(path := tmp_path / "trace.parquet")
    with pytest.raises(InputError, match="do not lie one after the other"):
        simulate_file(path, world.cluster, world.placement)
    assert simulate_file(path, world.cluster, world.placement, tokens_per_rank=20).step_tokens.sum() == n


@pytest.mark.slow
def test_ten_million_tokens_replay_in_under_four_gigabytes(tmp_path: Path) -> None:
    """The whole trace would be 2.7 GB of routes at 16 layers x top 8; what one process holds is measured."""
    script = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from moesim.cluster import Cluster
        from moesim.placement import Placement
        from moesim.simulate import simulate_file
        from moesim.spec import ModelSpec
        from moesim.trace import DECODE, Trace, TraceWriter

        path, spec = sys.argv[1], ModelSpec.preset("olmoe-1b-7b")
        rng = np.random.default_rng(0)
        drawn = np.argsort(rng.gumbel(size=(8192, spec.experts)), axis=1)[:, : spec.top_k].astype(np.int16)
        with TraceWriter(path, spec, origin={"synthetic": True}) as out:
            for part in range(100):
                routes = drawn[rng.integers(0, len(drawn), (100_000, spec.layers))]
                out.append(Trace(spec, routes=routes, request=part * 100_000 + np.arange(100_000),
                                 position=np.full(100_000, 1000), phase=np.full(100_000, DECODE, np.uint8)))
        cluster = Cluster.preset("h100-8x8-rail")
        table = np.tile(np.arange(spec.experts).reshape(64, 1), (spec.layers, 1, 1))
        report = simulate_file(path, cluster, Placement(table, spec.experts), tokens_per_rank=2048, transport="direct")
        print(report.step_tokens.sum(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "long.parquet")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tokens, gigabytes = done.stdout.split()
    sys.stdout.write(f"\n{int(tokens):,} tokens replayed in {float(gigabytes):.2f} GB\n")
    assert int(tokens) > 9_900_000
    assert float(gigabytes) < 4
