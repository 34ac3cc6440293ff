from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.capture import Batcher, Request

REQUESTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=12)


def run(batcher: Batcher, ends: frozenset[tuple[int, int]] = frozenset()):
    """Run to the end; a request grows by tokens that name their position, or ends where `ends` says so."""
    steps = []
    for works in batcher:
        for work in works:
            position = work.start + len(work.tokens)
            if work.sample and (work.request, position) in ends:
                batcher.end(work.request)
            elif work.sample:
                batcher.grow(work.request, 1000 * (work.request + 1) + position)
        steps.append(works)
    return steps


def request(number: int, prompt: int, new: int) -> Request:
    return Request(tuple(1000 * (number + 1) + i for i in range(prompt)), new, domain=number % 3)


@given(sizes=REQUESTS, slots=st.integers(1, 5), extra=st.integers(0, 20), chunk=st.integers(1, 16))
def test_every_token_of_every_request_runs_exactly_once_and_in_order(sizes, slots, extra, chunk):
    requests = [request(i, *size) for i, size in enumerate(sizes)]
    steps = run(Batcher(requests, slots=slots, step_tokens=slots + extra, chunk=chunk))
    for number, (prompt, new) in enumerate(sizes):
        works = [work for step in steps for work in step if work.request == number]
        tokens = [token for work in works for token in work.tokens]
        positions = [work.start + i for work in works for i in range(len(work.tokens))]
        assert tokens == [1000 * (number + 1) + i for i in range(prompt + new)]
        assert positions == list(range(prompt + new))
        assert [work.decode for work in works for _ in work.tokens] == [False] * prompt + [True] * new
        assert {work.domain for work in works} == {number % 3}


@given(sizes=REQUESTS, slots=st.integers(1, 5), extra=st.integers(0, 20), chunk=st.integers(1, 16))
def test_no_step_exceeds_its_bounds(sizes, slots, extra, chunk):
    requests = [request(i, *size) for i, size in enumerate(sizes)]
    for works in run(Batcher(requests, slots=slots, step_tokens=slots + extra, chunk=chunk)):
        assert works
        assert sum(len(work.tokens) for work in works) <= slots + extra
        assert len({work.slot for work in works}) == len(works) <= slots
        assert all(len(work.tokens) <= chunk for work in works if not work.decode)
        assert all(len(work.tokens) == 1 for work in works if work.decode)
        assert [work.decode for work in works] == sorted((work.decode for work in works), reverse=True)


def test_a_running_request_decodes_in_every_step():
    steps = run(Batcher([request(0, 2, 6), request(1, 40, 0)], slots=2, step_tokens=8, chunk=8))
    decodes = [any(work.request == 0 and work.decode for work in works) for works in steps]
    assert decodes[1:7] == [True] * 6
    assert [sum(len(w.tokens) for w in works if w.request == 1) for works in steps[:3]] == [6, 7, 7]


def test_a_request_is_admitted_as_soon_as_another_ends():
    steps = run(Batcher([request(0, 2, 1), request(1, 2, 5), request(2, 3, 0)], slots=2, step_tokens=16, chunk=16))
    assert [{work.request for work in works} for works in steps[:3]] == [{0, 1}, {0, 1}, {1, 2}]
    freed, taken = (next(w.slot for s in steps for w in s if w.request == r) for r in (0, 2))
    assert freed == taken


def test_a_request_may_end_early():
    steps = run(Batcher([request(0, 3, 10)], slots=1, step_tokens=4, chunk=4), ends=frozenset({(0, 5)}))
    assert [token for works in steps for work in works for token in work.tokens] == [1000, 1001, 1002, 1003, 1004]


def test_requests_are_drawn_only_when_there_is_room():
    drawn = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield request(len(drawn), 2, 0)

    steps = iter(Batcher(endless(), slots=3, step_tokens=8, chunk=4))
    next(steps)
    assert len(drawn) == 3


def test_a_forgotten_sample_is_an_error():
    batcher = Batcher([request(0, 2, 3)], slots=1, step_tokens=4, chunk=4)
    steps = iter(batcher)
    next(steps)
    with pytest.raises(InputError, match=r"requests \[0\] await `grow` or `end`"):
        next(steps)


def test_a_budget_that_starves_running_requests_is_refused():
    with pytest.raises(InputError, match="step_tokens 3 at least slots"):
        Batcher([], slots=4, step_tokens=3, chunk=1)


@pytest.mark.parametrize("bad", [Request(()), Request((1,), -1)])
def test_an_empty_prompt_or_a_negative_length_is_refused(bad):
    with pytest.raises(InputError, match="request 0: expected at least 1 prompt token and 0 new ones"):
        next(iter(Batcher([bad], slots=1, step_tokens=1, chunk=1)))
