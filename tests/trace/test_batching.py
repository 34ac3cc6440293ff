"""Batching: full steps, nobody lost, nobody twice, and notes that say what was done."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_traces import law, lengths, random_trace

from moesim.base.errors import InputError, UnknownName
from moesim.spec import ModelSpec
from moesim.trace import DECODE, PREFILL, Batches, Trace, make_batches
from moesim.trace.unpicked import unpicked_layers

HOMES = st.sampled_from(["round-robin", "least-loaded"])


def ranks_are_full(batches: Batches, size: int) -> None:
    for step in range(len(batches)):
        homes = batches.homes(step)
        assert np.array_equal(np.bincount(homes, minlength=batches.ranks), np.full(batches.ranks, size))
        assert (np.diff(homes) >= 0).all()


@law
@given(lengths=lengths, ranks=st.integers(1, 5), size=st.integers(1, 6), homes=HOMES, seed=st.integers(0, 3))
def test_prefill_chunks_keep_order_and_rank_and_fill_every_step(lengths, ranks, size, homes, seed):
    trace = random_trace(seed, lengths)
    batches = make_batches(trace, ranks, tokens_per_rank=size, homes=homes, seed=seed)
    assert len(batches) >= 1
    ranks_are_full(batches, size)
    if batches.resampled:
        assert batches.notes[-1].startswith("resampled: ")
        return
    assert len(np.unique(batches.token)) == len(batches.token)
    step = np.repeat(np.arange(len(batches)), np.diff(batches.offsets))
    for request in np.unique(trace.request[batches.token]):
        mine = trace.request[batches.token] == request
        assert len(set(batches.home[mine])) == 1
        # from its first token on, without a gap, chunk after chunk
        assert np.array_equal(trace.position[batches.token[mine]], np.arange(mine.sum()))
        assert np.array_equal(np.unique(step[mine]), np.arange(step[mine][0], step[mine][-1] + 1))
    dropped = trace.tokens - len(batches.token)
    assert any(note.startswith(f"dropped: {dropped} of") for note in batches.notes) == (dropped > 0)


@law
@given(lengths=lengths, ranks=st.integers(1, 4), size=st.integers(1, 4), seed=st.integers(0, 3))
def test_decode_runs_one_token_of_a_request_in_a_step_unless_a_note_says_otherwise(lengths, ranks, size, seed):
    trace = random_trace(seed, lengths, decode=1.0)
    batches = make_batches(trace, ranks, tokens_per_rank=size, phase="decode", seed=seed)
    assert set(batches.phase) == {DECODE}
    ranks_are_full(batches, size)
    if batches.resampled:
        assert batches.notes[0].startswith(("resampled: ", "independent: "))
        if batches.notes[0].startswith("independent: "):
            assert len(np.unique(batches.token)) == len(batches.token)
        else:
            # every token equally often, give or take one
            times = np.bincount(batches.token, minlength=trace.tokens)
            assert times.max() - times.min() <= 1
        return
    assert len(np.unique(batches.token)) == len(batches.token)
    last: dict[int, tuple[int, int]] = {}
    for step in range(len(batches)):
        rows = batches.token[batches.offsets[step] : batches.offsets[step + 1]]
        assert len(set(trace.request[rows])) == len(rows)
        for row, home in zip(rows, batches.homes(step), strict=True):
            request, position = int(trace.request[row]), int(trace.position[row])
            if request in last:
                assert last[request] == (position - 1, home)
            else:
                assert position == 0
            last[request] = position, home


@law
@given(lengths=lengths, ranks=st.integers(1, 4), size=st.integers(1, 5), decode=st.sampled_from([0.0, 0.5]))
def test_the_same_seed_gives_the_same_batches(lengths, ranks, size, decode):
    trace = random_trace(0, lengths, decode=decode)
    first, second = (make_batches(trace, ranks, tokens_per_rank=size, seed=7) for _ in range(2))
    assert first == second
    assert first.notes == second.notes


def test_a_short_trace_is_resampled_and_says_so():
    batches = make_batches(random_trace(0, [3, 4]), 2, tokens_per_rank=100)
    assert batches.resampled
    assert len(batches) == 4
    assert batches.notes == (
        "resampled: 7 prefill tokens cannot fill a step of 2 x 100; in 4 steps requests are drawn again and again "
        "(seed 0), each token 114 times on average",
    )
    assert len(make_batches(random_trace(0, [3, 4]), 2, tokens_per_rank=100, max_steps=9)) == 9


def test_a_step_that_whole_requests_cannot_fill_is_said_to_be_one():
    (note,) = make_batches(random_trace(0, [300, 4]), 4, tokens_per_rank=50).notes
    assert note.startswith(
        "resampled: 304 prefill tokens of 2 requests, each whole on one rank, do not give every one of 4 ranks "
        "50 tokens; in 4 steps"
    )


def test_too_few_live_requests_make_decode_tokens_independent():
    batches = make_batches(random_trace(0, [50, 50], decode=1.0), 2, tokens_per_rank=8)
    assert batches.notes == (
        "independent: 2 requests cannot keep 16 places busy; decode tokens run as requests of their own, each once",
        "dropped: 4 of 100 decode tokens that do not fill a step of every rank",
    )
    assert len(batches) == 6
    assert batches.resampled


def test_recorded_steps_and_sources_are_replayed_as_recorded(trace):
    batches = make_batches(trace, 2)
    assert len(batches) == 5
    assert batches.tokens_per_rank is None
    assert not batches.resampled
    assert sorted(batches.token) == list(range(40))
    for step in range(5):
        rows = batches.token[batches.offsets[step] : batches.offsets[step + 1]]
        assert set(trace.step[rows]) == {step}
        assert np.array_equal(batches.homes(step), trace.source[rows])
        assert np.array_equal(batches.routes(step), trace.routes[rows])
        assert np.array_equal(batches.positions(step), trace.position[rows])
    assert batches.phase.tolist() == [0, 0, 1, 1, 1]
    assert batches.notes == ("as recorded: steps and home ranks are those of the trace",)
    assert len(make_batches(trace, 2, phase="decode")) == 3
    two = make_batches(trace, 2, max_steps=2)
    assert (len(two), two.notes[-1]) == (2, "kept: the first 2 of 5 steps")


def test_steps_of_both_phases_count_as_the_phase_of_most_tokens(trace):
    mixed = dataclasses.replace(trace, phase=(np.arange(40) >= 18).astype(int))
    batches = make_batches(mixed, 2)
    assert batches.phase.tolist() == [0, 0, 1, 1, 1]
    assert batches.notes[-1].startswith("mixed: tokens of several phases are in 1 step,")


@pytest.mark.parametrize(
    ("change", "options", "note"),
    [
        ({}, {"ranks": 3}, "regrouped: the trace was recorded on 2 ranks, not 3"),
        ({"origin": {"ranks": 8}}, {"ranks": 2}, "regrouped: the trace was recorded on 8 ranks, not 2"),
        ({"origin": {"ranks": "two"}}, {"ranks": 3}, "regrouped: the trace was recorded on 2 ranks, not 3"),
        ({"source": None}, {"ranks": 2}, "regrouped: source ranks were not recorded"),
        ({}, {"ranks": 2, "tokens_per_rank": 4}, "regrouped: a number of tokens per rank was given"),
    ],
)
def test_recorded_steps_are_regrouped_only_with_a_note(trace, change, options, note):
    batches = make_batches(dataclasses.replace(trace, **change), **options)
    assert batches.notes[0].startswith(note)


def test_phases_are_packed_apart():
    trace = random_trace(0, [20] * 12, decode=0.5)
    only = make_batches(trace, 2, tokens_per_rank=5)
    assert set(only.phase) == {PREFILL}
    assert only.notes[0] == "phase: prefill only, decode left out"
    both = make_batches(trace, 2, tokens_per_rank={PREFILL: 10, DECODE: 3})
    assert both.tokens_per_rank is None
    assert set(both.phase) == {PREFILL, DECODE}
    for step, phase in enumerate(both.phase):
        rows = both.token[both.offsets[step] : both.offsets[step + 1]]
        assert set(trace.phase[rows]) == {phase}
        assert len(rows) == (20 if phase == PREFILL else 6)


def test_default_sizes_are_those_of_serving():
    trace = random_trace(0, [2048] * 4, decode=0.5)
    assert make_batches(trace, 2).tokens_per_rank == 1024
    assert make_batches(trace, 2, phase="decode").tokens_per_rank == 128


def test_requests_arrive_in_recorded_order_and_are_shuffled_otherwise():
    request = np.arange(60) // 3
    together = random_trace(0, [3] * 20, step=19 - request // 2)  # recorded: two requests a step, the last ones first
    batches = make_batches(together, 1, tokens_per_rank=6)
    assert together.request[batches.token[:6]].tolist() == [18, 18, 18, 19, 19, 19]
    lone = random_trace(0, [3] * 20)
    orders = {tuple(lone.request[make_batches(lone, 1, tokens_per_rank=6, seed=s).token]) for s in range(4)}
    assert len(orders) == 4


@law
@given(lengths=lengths, ranks=st.integers(1, 5), size=st.integers(1, 6), seed=st.integers(0, 3))
def test_a_prompt_is_answered_once_on_each_rank_that_holds_some_of_it(lengths, ranks, size, seed):
    batches = make_batches(random_trace(seed, lengths), ranks, tokens_per_rank=size, seed=seed)
    for step in range(len(batches)):
        home, request, found = batches.homes(step), batches.requests(step), batches.answered(step)
        if batches.phase[step] == PREFILL:
            held = set(zip(home.tolist(), request.tolist(), strict=True))
            assert found.sum() == len(held)
            assert set(zip(home[found].tolist(), request[found].tolist(), strict=True)) == held
        else:
            assert found.all()


def test_take_gives_consecutive_steps():
    batches = make_batches(random_trace(0, [6] * 10), 2, tokens_per_rank=3)
    part = batches.take(slice(2, 4))
    assert len(part) == 2
    assert np.array_equal(part.routes(1), batches.routes(3))
    assert np.array_equal(part.homes(0), batches.homes(2))
    assert len(batches.take(slice(5, 2))) == 0
    with pytest.raises(InputError, match="consecutive"):
        batches.take(slice(0, 4, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 0}, "at least 1 rank"),
        ({"tokens_per_rank": 0}, "tokens_per_rank must be at least 1"),
        ({"tokens_per_rank": {5: 1}}, "phase codes 0..2"),
        ({"tokens_per_rank": {2: 1}}, "holds no train tokens"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"phase": "train"}, r"holds no train tokens \(it holds: decode, prefill\)"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_batches(random_trace(0, [4, 4], decode=0.5), **({"ranks": 2} | options))


def test_a_limit_beyond_all_integers_is_none():
    trace = random_trace(0, [40, 40])
    assert make_batches(trace, 2, tokens_per_rank=8, max_steps=10**30) == make_batches(trace, 2, tokens_per_rank=8)


@pytest.mark.parametrize(
    "what", [lambda trace: make_batches(trace, 2, seed=-1), lambda trace: trace.split(0.5, seed=-1)]
)
def test_a_seed_that_no_generator_takes_is_refused(what):
    with pytest.raises(InputError, match="seed: expected a whole number from 0 up, got -1"):
        what(random_trace(0, [4, 4]))


def test_unknown_names_are_refused(trace):
    with pytest.raises(UnknownName, match="did you mean 'prefill'"):
        make_batches(trace, 2, phase="pre-fill")
    with pytest.raises(UnknownName, match="did you mean 'least-loaded'"):
        make_batches(trace, 2, homes="least-load")


def test_counts_cannot_be_batched(trace):
    counted = Trace(trace.spec, given_counts=trace.counts)
    with pytest.raises(InputError, match="counts only; steps need the routes of every token: record those, or draw"):
        make_batches(counted, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"home": np.full(40, 2)}, r"Batches.home: values must lie in 0\.\.1"),
        ({"token": np.full(40, 40)}, r"Batches.token: values must lie in 0\.\.39"),
        ({"offsets": [0, 8, 16, 24, 32, 39]}, "ascending numbers from 0 to 40"),
        ({"ranks": 0}, "at least 1"),
    ],
)
def test_batches_check_themselves(trace, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(make_batches(trace, 2), **change)


def test_a_million_tokens_take_about_a_second():
    spec = ModelSpec("one", (0,), 1, experts=4, top_k=1, hidden=8, intermediate=8)
    row = np.arange(1_000_000)
    trace = Trace(spec, np.zeros((len(row), 1, 1), np.int16), request=row // 200, phase=row % 2)
    make_batches(trace, 4, tokens_per_rank=16, max_steps=1)  # compiles
    began = time.perf_counter()
    make_batches(trace, 32, tokens_per_rank={PREFILL: 64, DECODE: 32})
    assert time.perf_counter() - began < 5  # measured 0.2 s on one core; the rest is room for busy machines


def test_ranks_that_hold_copies_of_one_request_hold_different_parts_of_it():
    batches = make_batches(random_trace(0, [300]), 8, tokens_per_rank=64, phase="prefill")
    for step in range(len(batches)):
        tokens = batches.token[batches.offsets[step] : batches.offsets[step + 1]]
        # 512 places, 300 tokens: not the same 64 on every rank
        assert len(np.unique(tokens)) > 150
    drawn = np.bincount(batches.token, minlength=300)
    assert drawn.min() >= 1
    assert drawn.max() <= 3 * drawn.mean()


def test_a_step_that_would_draw_every_token_hundreds_of_times_is_refused():
    with pytest.raises(InputError, match=r"draw each of 300 prefill tokens 341 times; .* at most 600 tokens per rank"):
        make_batches(random_trace(0, [300]), 100, phase="prefill")


def test_decode_tokens_that_are_drawn_again_say_in_how_many_steps():
    batches = make_batches(random_trace(0, [5, 5], decode=1.0), 2, tokens_per_rank=8, max_steps=3)
    assert len(batches) == 3
    assert batches.notes == (
        "resampled: 2 requests cannot keep 16 places busy; in 3 steps 10 decode tokens run as requests of their own, "
        "drawn again and again (seed 0), each 4.8 times on average",
    )


@pytest.mark.parametrize("recorded", [False, True])
def test_layers_without_picks_are_named(recorded: bool):
    spec = ModelSpec("late", (3, 4, 6), 8, experts=6, top_k=2, hidden=8, intermediate=8)
    routes = np.tile(np.array([0, 1], np.int16), (3000, 3, 1))
    routes[:, 1] = -1
    where = {"step": np.arange(3000) // 100, "source": np.arange(3000) % 2} if recorded else {}
    trace = Trace(spec, routes=routes, request=np.arange(3000) // 10, **where)
    (note,) = (note for note in make_batches(trace, 2).notes if note.startswith("unpicked"))
    assert "in decoder layer 4," in note
    assert unpicked_layers(trace) == [4]
    assert unpicked_layers(Trace(spec, given_counts=trace.counts)) == [4]
    late = routes.copy()
    late[2999, 1] = [4, 5]  # one pick is enough, wherever it is
    assert unpicked_layers(Trace(spec, routes=late)) == []
    assert unpicked_layers(trace.select([])) == []
