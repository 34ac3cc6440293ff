"""The engines on plain arrays: they agree, lose nothing and never beat what physics allows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import InputError, UnknownName
from moesim.simulate.closed import run_closed_form
from moesim.simulate.critical import critical_path
from moesim.simulate.engine import run_events
from moesim.simulate.phases import ATTENTION, COMBINE, DISPATCH, EXPERTS, PHASES, SHARED
from moesim.simulate.reference import run_reference
from moesim.simulate.schedules import SCHEDULES, Schedule, get_schedule
from moesim.simulate.work import Work

EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
seeds = st.integers(0, 2**32 - 1)
law = settings(deadline=None)  # the first call compiles


def random_work(seed: int, M: int, L: int = 3, R: int = 5) -> Work:
    """Durations of any kind: idle ranks, ranks that send to nobody, exchanges that cost next to nothing."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, -2, size=5)
    return Work(
        attention_s=rng.random((M, L, R)) * scale[0],
        shared_s=rng.random((M, L, R)) * scale[1] * rng.integers(0, 2),
        experts_s=rng.random((M, L, R)) * scale[2] * (rng.random((M, L, R)) < 0.8),
        arrive_s=rng.random((M, 2, L, R)) * scale[3] + 1e-6,
        own_s=rng.random((M, 2, L, R)) * scale[4],
        word_s=rng.random((M, 2, L)) * 1e-6,
        sends=rng.random((M, 2, L, R, R)) < rng.random(),
        everyone=(bool(rng.integers(2)), bool(rng.integers(2))),
    )


def even_work(M: int = 1, L: int = 2, R: int = 4, **seconds: float) -> Work:
    """Every rank has the same of everything and sends to everybody."""
    times = {"attention": 1.0, "shared": 0.5, "experts": 2.0, "arrive": 3.0, "own": 2.5} | seconds
    return Work(
        attention_s=np.full((M, L, R), times["attention"]),
        shared_s=np.full((M, L, R), times["shared"]),
        experts_s=np.full((M, L, R), times["experts"]),
        arrive_s=np.full((M, 2, L, R), times["arrive"]),
        own_s=np.full((M, 2, L, R), times["own"]),
        word_s=np.full((M, 2, L), 0.25),
        sends=np.ones((M, 2, L, R, R), dtype=bool),
    )


@EVERY_SCHEDULE
@law
@given(seed=seeds)
def test_vector_clocks_equal_a_process_for_every_rank(schedule: Schedule, seed: int) -> None:
    work = random_work(seed, schedule.micro_batches)
    fast, slow = run_events(work, schedule), run_reference(work, schedule)
    # sums may differ in their last digit
    np.testing.assert_allclose(fast.start_s, slow.start_s, rtol=1e-12, atol=0)
    np.testing.assert_allclose(fast.end_s, slow.end_s, rtol=1e-12, atol=0)
    np.testing.assert_array_equal(fast.previous, slow.previous)


@EVERY_SCHEDULE
@law
@given(seed=seeds)
def test_the_critical_path_is_as_long_as_the_step(schedule: Schedule, seed: int) -> None:
    work = random_work(seed, schedule.micro_batches)
    timeline = run_events(work, schedule)
    path = critical_path(work, timeline, schedule)
    assert (path >= 0).all()
    assert path.sum() == pytest.approx(timeline.step_s, rel=1e-12)


@EVERY_SCHEDULE
@law
@given(seed=seeds)
def test_no_step_is_shorter_than_what_each_rank_must_do(schedule: Schedule, seed: int) -> None:
    work = random_work(seed, schedule.micro_batches)
    timeline = run_events(work, schedule)
    slack = 1 + 1e-12
    compute_s = work.attention_s + work.experts_s
    assert compute_s.sum(axis=(0, 1)).max() <= timeline.step_s * slack
    for way, phase in enumerate((DISPATCH, COMBINE)):
        begin_s, end_s = timeline.start_s[:, phase].min(-1), timeline.end_s[:, phase].max(-1)
        assert (begin_s + work.arrive_s[:, way].max(-1) <= end_s * slack).all()


@EVERY_SCHEDULE
@law
@given(seed=seeds, part=st.sampled_from(["attention_s", "shared_s", "experts_s", "arrive_s", "own_s"]))
def test_more_work_anywhere_never_ends_sooner(schedule: Schedule, seed: int, part: str) -> None:
    work = random_work(seed, schedule.micro_batches)
    rng = np.random.default_rng(seed)
    grown = getattr(work, part) * (1 + rng.random(getattr(work, part).shape))
    if part == "own_s":
        # bytes grow alike: how much the others have tells what part of them is still to come when a late one begins
        word_s = work.word_s[..., None]
        grown = np.maximum(work.own_s - word_s, 0.0) * (1 + rng.random()) + np.minimum(work.own_s, word_s)
    more = dataclasses.replace(work, **{part: grown})
    assert (run_events(more, schedule).end_s >= run_events(work, schedule).end_s * (1 - 1e-12)).all()


@EVERY_SCHEDULE
@law
@given(seed=seeds)
def test_the_names_of_ranks_do_not_matter(schedule: Schedule, seed: int) -> None:
    work = random_work(seed, schedule.micro_batches)
    order = np.random.default_rng(seed).permutation(work.shape[2])
    names = ("attention_s", "shared_s", "experts_s", "arrive_s", "own_s", "sends")
    parts = {name: (work.senders() if name == "sends" else getattr(work, name))[..., order] for name in names}
    parts["sends"] = parts["sends"][..., order, :]
    renamed = run_events(dataclasses.replace(work, **parts), schedule)
    # sums over senders are in the order of their names
    np.testing.assert_allclose(renamed.end_s, run_events(work, schedule).end_s[..., order], rtol=1e-12, atol=0)


@EVERY_SCHEDULE
@law
@given(seed=seeds)
def test_a_stream_does_one_thing_at_a_time(schedule: Schedule, seed: int) -> None:
    work = random_work(seed, schedule.micro_batches)
    timeline = run_events(work, schedule)
    for stream in set(schedule.stream.values()):
        phases = [code for code, name in enumerate(PHASES) if schedule.stream[name] == stream]
        for rank in range(work.shape[2]):
            start_s = timeline.start_s[:, phases, :, rank].ravel()
            end_s = timeline.end_s[:, phases, :, rank].ravel()
            order = np.lexsort((end_s, start_s))
            assert (start_s[order][1:] >= end_s[order][:-1]).all()


def test_phases_of_one_batch_follow_one_another() -> None:
    timeline = run_events(even_work(), get_schedule("sequential"))
    ends_s = [timeline.end_s[0, phase, 0, 0] for phase in (ATTENTION, SHARED, DISPATCH, EXPERTS, COMBINE)]
    assert ends_s == [1.0, 1.5, 4.5, 6.5, 9.5]
    assert timeline.step_s == 19.0


def test_a_shared_expert_beside_the_exchange_costs_nothing_until_it_is_the_longest() -> None:
    overlap = get_schedule("shared-overlap")
    assert run_events(even_work(shared=0.5), overlap).step_s == 18.0
    assert run_events(even_work(shared=20.0), overlap).step_s == 42.0


def test_two_batches_hide_the_shorter_stream_behind_the_longer() -> None:
    # halves: attention 0.5, experts 1, exchanges 1.5 each; the network is never idle after the first attention
    work = even_work(M=2, L=10, attention=0.5, shared=0.0, experts=1.0, arrive=1.5, own=1.5)
    assert run_events(work, get_schedule("two-batch")).step_s == pytest.approx(0.5 + 10 * 4 * 1.5)
    # one after the other would need 2 x 10 x (0.5 + 1 + 3)
    assert 10 * 2 * 4.5 > 60.5


def test_a_straggler_delays_only_those_who_wait_for_it() -> None:
    # rank 0 computes long in layer 0; ranks 0, 1 and ranks 2, 3 talk only among themselves
    work = even_work(L=1)
    experts_s, sends = np.array(work.experts_s), np.zeros_like(work.senders())
    experts_s[0, 0, 0] = 10.0
    sends[..., :2, :2] = sends[..., 2:, 2:] = True
    end_s = run_events(dataclasses.replace(work, experts_s=experts_s, sends=sends), get_schedule("sequential")).end_s
    np.testing.assert_array_equal(end_s[0, COMBINE, 0], [17.0, 17.0, 9.5, 9.5])


def test_an_early_rank_starts_its_next_layer_early() -> None:
    work = even_work(L=2)
    arrive_s = np.array(work.arrive_s)
    arrive_s[0, 1, 0] = [3.0, 3.0, 3.0, 9.0]
    timeline = run_events(dataclasses.replace(work, arrive_s=arrive_s), get_schedule("sequential"))
    np.testing.assert_array_equal(timeline.start_s[0, ATTENTION, 1], [9.5, 9.5, 9.5, 15.5])


def test_work_is_checked() -> None:
    work = even_work()
    with pytest.raises(InputError, match=r"Work\.experts_s: expected finite seconds"):
        dataclasses.replace(work, experts_s=-work.experts_s)
    with pytest.raises(InputError, match=r"Work\.own_s: expected 4 ranks, got 3"):
        dataclasses.replace(work, own_s=work.own_s[..., :3])
    with pytest.raises(InputError, match="'two-batch' runs 2 micro-batches, the work has 1"):
        run_events(work, get_schedule("two-batch"))


def test_schedules_are_checked() -> None:
    with pytest.raises(UnknownName, match="did you mean 'two-batch'"):
        get_schedule("two-batches")
    streams = dict.fromkeys(PHASES, "main")
    with pytest.raises(InputError, match="expected a stream for each"):
        Schedule("mine", {"attention": "main"})
    with pytest.raises(InputError, match="1 micro-batch or more"):
        Schedule("mine", streams, micro_batches=0)
    with pytest.raises(InputError, match="'attention' or 'shared'"):
        Schedule("mine", streams, dispatch_after="experts")


def test_a_schedule_of_ones_own_runs_on_every_engine() -> None:
    # three batches, the shared expert on a stream of its own
    streams = {"attention": "gpu", "experts": "gpu", "shared": "side", "dispatch": "net", "combine": "net"}
    mine = Schedule("mine", streams, micro_batches=3)
    work = random_work(7, 3)
    np.testing.assert_array_equal(run_events(work, mine).end_s, run_reference(work, mine).end_s)
    assert EXPERTS in mine.needs[COMBINE]
    assert DISPATCH in mine.needs[EXPERTS]


@pytest.mark.parametrize("name", ["sequential", "shared-overlap"])
@law
@given(seed=seeds)
def test_without_competition_the_engine_is_the_closed_form(name: str, seed: int) -> None:
    work, schedule = random_work(seed, 1), get_schedule(name)
    events, formula = run_events(work, schedule), run_closed_form(work, schedule)
    np.testing.assert_array_equal(events.start_s, formula.start_s)
    np.testing.assert_array_equal(events.end_s, formula.end_s)
    np.testing.assert_array_equal(events.previous, formula.previous)


def test_overlap_on_a_stream_has_no_closed_form() -> None:
    with pytest.raises(InputError, match=r"'two-batch' overlaps work on a stream.*engine='events'"):
        run_closed_form(even_work(M=2), get_schedule("two-batch"))


def test_a_rank_that_gets_nothing_still_waits_for_the_word_of_everyone() -> None:
    # rank 0 ends its attention late and sends to nobody
    work = even_work(L=1)
    attention_s, sends = np.array(work.attention_s), np.array(work.senders())
    attention_s[0, 0, 0] = 9.0
    sends[:, :, :, 0] = False
    quiet = dataclasses.replace(work, attention_s=attention_s, sends=sends)
    overlap = get_schedule("shared-overlap")
    np.testing.assert_array_equal(run_events(quiet, overlap).end_s[0, DISPATCH, 0], [9.0, 4.0, 4.0, 4.0])
    loud = dataclasses.replace(quiet, everyone=(True, False))
    np.testing.assert_array_equal(run_events(loud, overlap).end_s[0, DISPATCH, 0], [9.25] * 4)


def contended(seed: int, M: int = 2) -> Work:
    """Durations of like size, skewed among ranks, with exchanges that take a part of compute."""
    rng = np.random.default_rng(seed)
    work = random_work(seed, M)
    uneven = {
        name: 1e-4 * (1 + rng.random(getattr(work, name).shape)) for name in ("attention_s", "experts_s", "arrive_s")
    }
    return dataclasses.replace(work, **uneven, everyone=(True, True), taken=rng.uniform(0, 0.8, (M, 2, 3)))


@law
@given(seed=seeds)
def test_overlapped_exchanges_slow_compute_as_a_fluid_would(seed: int) -> None:
    # the vector engine may miss what a rank far ahead of the others does at the seam of two phases
    work, schedule = contended(seed), get_schedule("two-batch")
    fast, slow = run_events(work, schedule), run_reference(work, schedule)
    assert fast.step_s == pytest.approx(slow.step_s, rel=0.02)
    idle = run_events(dataclasses.replace(work, taken=np.zeros((2, 2, 3))), schedule)
    assert fast.step_s >= idle.step_s * (1 - 1e-12)
    assert critical_path(work, fast, schedule).sum() == pytest.approx(fast.step_s, rel=1e-12)


def test_an_exchange_takes_its_share_of_compute_while_both_run() -> None:
    # two halves of one layer: the second half's attention and first half's dispatch begin together at 1
    work = even_work(M=2, L=1, shared=0.0, arrive=4.0, own=4.0)
    schedule = get_schedule("two-batch")
    slow = dataclasses.replace(work, taken=np.full((2, 2, 1), 0.5))
    assert run_events(work, schedule).end_s[1, ATTENTION, 0, 0] == 2.0
    assert run_events(slow, schedule).end_s[1, ATTENTION, 0, 0] == 3.0
    # experts of the first half run beside the second half's dispatch, 5 to 9: 2 s of work in 4
    assert run_events(slow, schedule).end_s[0, EXPERTS, 0, 0] == 9.0
    # where nothing overlaps nothing is taken
    alone = dataclasses.replace(even_work(), taken=np.full((1, 2, 2), 0.5))
    assert run_events(alone, get_schedule("sequential")).step_s == 19.0
