"""The type Trace: what it refuses, what it derives, how it is cut."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_traces import law, lengths, random_trace, small_spec

import moesim.trace as room
from moesim.base.errors import InputError, UnknownName
from moesim.spec import ModelSpec
from moesim.trace import PHASES, Trace


def test_defaults_are_one_request_of_prefill_from_nowhere():
    trace = Trace(small_spec(), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    assert trace.tokens == 2
    assert trace.steps == 1
    assert trace.position.tolist() == [0, 1]
    assert trace.source.tolist() == [-1, -1]
    assert PHASES[trace.phase[0]] == "prefill"
    assert not trace.has_steps


def test_arrays_are_read_only_even_after_pickling(trace):
    copy = pickle.loads(pickle.dumps(trace))
    assert copy == trace
    for each in (trace, copy):
        with pytest.raises(ValueError, match="read-only"):
            each.routes[0, 0, 0] = 1
        with pytest.raises(TypeError):
            each.origin["synthetic"] = False


def test_the_givers_array_is_not_frozen_or_shared():
    routes = np.zeros((1, 2, 2), np.int16)
    routes[..., 1] = 1
    trace = Trace(small_spec(), routes)
    routes[0, 0, 0] = 5
    assert trace.routes[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("token", "layer", "picks", "message"),
    [
        (3, 1, (0, 8), r"token 3, layer 1: expert id 8 is not in -1\.\.7; give the spec of the model"),
        (0, 0, (-2, 0), r"token 0, layer 0: expert id -2 is not in -1\.\.7"),
        (4, 0, (6, 6), "token 4, layer 0: expert 6 occurs twice in one pick"),
    ],
)
def test_a_bad_pick_is_named_by_token_layer_and_value(token, layer, picks, message):
    routes = np.tile([0, 1], (5, 2, 1))
    routes[token, layer] = picks
    with pytest.raises(InputError, match=message):
        Trace(small_spec(), routes)


def test_no_expert_may_occur_any_number_of_times():
    assert Trace(small_spec(), [[[-1, -1], [3, -1]]]).loads.sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routes": np.zeros((40, 3, 2))}, "expected 2 layers, got 3"),
        ({"routes": np.full((40, 2, 2), 40_000)}, "do not fit int16"),
        ({"weights": np.full((40, 2, 2), np.nan)}, "token 0, layer 0: not a finite float16"),
        ({"weights": np.full((40, 2, 2), 1e6)}, "not a finite float16; rescale"),
        ({"step": np.zeros(39)}, "expected 40 rows, got 39"),
        ({"step": np.full(40, -1)}, "Trace.step: row 0: -1 is not in 0"),
        ({"phase": np.full(40, 3)}, r"Trace.phase: row 0: 3 is not in 0\.\.2"),
        ({"domain": np.full(40, 2)}, r"Trace.domain: row 0: 2 is not in 0\.\.1"),
        ({"source": np.full(40, -2)}, "Trace.source: row 0"),
        ({"domains": ("a", "a")}, "names must be unique"),
        ({"routes": None}, "expected either routes"),
        ({"given_counts": np.zeros((5, 2, 8))}, "expected either routes"),
        ({"origin": {"when": object()}}, "plain data"),
        ({"spec": dataclasses.replace(small_spec(), experts=40_000)}, "at most 32767 experts"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place(trace, change, message):
    with pytest.raises(InputError, match=message) as caught:
        dataclasses.replace(trace, **change)
    assert "\n" not in str(caught.value)


def test_counts_are_picks_by_step_layer_and_expert(trace):
    counts = np.zeros((5, 2, 8), int)
    for t in range(40):
        for layer in range(2):
            for expert in trace.routes[t, layer]:
                counts[t // 8, layer, expert] += 1
    assert np.array_equal(trace.counts, counts)
    assert np.array_equal(trace.loads, counts.sum(axis=0))
    assert np.array_equal(trace.domain_loads().sum(axis=0), trace.loads)
    assert np.array_equal(trace.domain_loads()[1], trace.of_domain("code").loads)


def test_loads_can_be_grouped_by_anything(trace):
    by_request = trace.loads_by(trace.request, 4)
    assert np.array_equal(by_request.sum(axis=0), trace.loads)
    assert np.array_equal(by_request[2], trace.select(trace.request == 2).loads)
    with pytest.raises(InputError, match=r"expected a group in 0\.\.2 for each row \(40\)"):
        trace.loads_by(trace.request, 3)


def test_a_trace_of_counts_counts_tokens_by_its_fullest_layer(trace):
    counted = Trace(trace.spec, given_counts=trace.counts, step=trace.step_ids)
    assert (counted.tokens, counted.steps, counted.rows) == (40, 5, 5)
    assert np.array_equal(counted.counts, trace.counts)
    fit, held_out = counted.split(0.4)
    assert (fit.steps, held_out.steps) == (2, 3)
    with pytest.raises(InputError, match="knows no requests"):
        counted.split(0.5, by="request")
    with pytest.raises(InputError, match="step 1, layer 0, expert 2: negative"):
        Trace(trace.spec, given_counts=np.where(np.arange(5 * 16).reshape(5, 2, 8) == 18, -1, 1))
    with pytest.raises(InputError, match="ascending"):
        Trace(trace.spec, given_counts=trace.counts, step=[0, 2, 1, 3, 4])


def test_digest_names_the_routing_and_not_the_origin(trace):
    assert dataclasses.replace(trace, origin={}).digest == trace.digest
    assert dataclasses.replace(trace, origin={}) != trace
    for change in (
        {"routes": trace.routes[..., ::-1]},
        {"weights": None},
        {"source": trace.source + 1},
        {"domains": ("law", "poems")},
        {"spec": dataclasses.replace(trace.spec, hidden=8)},
    ):
        assert dataclasses.replace(trace, **change).digest != trace.digest


def test_select_window_domain_phase_and_layers(trace):
    assert trace.select([3, 1]).request.tolist() == [3, 1]
    assert trace.select([]).tokens == 0
    assert np.array_equal(trace.window(1, 3).step, np.repeat([1, 2], 8))
    assert set(trace.of_domain("code").domain) == {1}
    assert set(trace.of_phase("decode").phase) == {1}
    one = trace.of_layers([1])
    assert one.spec.layer_ids == (1,)
    assert np.array_equal(one.routes[:, 0], trace.routes[:, 1])
    with pytest.raises(UnknownName, match="did you mean 'law'"):
        trace.of_domain("laws")
    with pytest.raises(UnknownName, match="choose one of decode, prefill, train"):
        trace.of_phase("both")
    with pytest.raises(InputError, match="row numbers"):
        trace.select([40])
    with pytest.raises(InputError, match="mask of 40"):
        trace.select(np.ones(3, bool))
    with pytest.raises(InputError, match="ascending MoE layer numbers"):
        trace.of_layers([1, 0])


def test_recorded_steps_are_split_in_time_and_lone_requests_by_shuffle(trace):
    fit, held_out = trace.split(0.5)
    assert trace.has_steps
    assert fit.step.max() < held_out.step.min()
    lone = random_trace(0, [5] * 20)
    assert not lone.has_steps
    fit, held_out = lone.split(0.5)
    assert fit.steps == held_out.steps == 10
    assert lone.split(0.5, seed=1)[0] != fit
    assert lone.split(0.5)[0] == fit


@law
@given(lengths=lengths.filter(lambda n: len(n) > 1), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_a_split_is_disjoint_complete_and_leaves_neither_side_empty(lengths, fraction, seed):
    trace = random_trace(seed, lengths)
    fit, held_out = trace.split(fraction, seed=seed)
    assert fit.tokens > 0
    assert held_out.tokens > 0
    assert fit.tokens + held_out.tokens == trace.tokens
    assert not set(fit.request) & set(held_out.request)
    assert np.array_equal(fit.loads + held_out.loads, trace.loads)
    # nearest cut: moving one request over cannot come closer than half of the longest
    assert abs(fit.tokens - fraction * trace.tokens) <= max(lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "between 0 and 1"), ((1.0,), "between 0 and 1"), ((0.5, "phase"), "way to split 'phase'")],
)
def test_a_split_refuses_what_it_cannot_do(trace, arguments, message):
    with pytest.raises(InputError, match=message):
        trace.split(*arguments)


def test_one_request_cannot_be_split():
    with pytest.raises(InputError, match="needs at least two requests, the trace has 1"):
        random_trace(0, [9]).split(0.5)


def test_validation_keeps_up_with_large_traces():
    spec = ModelSpec.preset("deepseek-v3")
    routes = np.tile(np.arange(8, dtype=np.int16), (2000, spec.layers, 1))
    routes[1999, 57, 7] = 0
    with pytest.raises(InputError, match="token 1999, layer 57: expert 0 occurs twice"):
        Trace(spec, routes)


def test_the_room_exports_what_it_says_and_imports_nothing_heavy_for_it():
    assert sorted(room.__all__, key=lambda name: (not name.isupper(), name)) == room.__all__
    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'traces'"):
        _ = room.traces
    heavy = "{'numba', 'pyarrow', 'pydantic', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, moesim.trace; sys.exit(bool({heavy}))"], check=True)
