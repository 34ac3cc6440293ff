"""Quantities carry their unit at the rim and are SI inside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.base.errors import InputError
from moesim.base.units import parse, show


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("450 GB/s", "bandwidth", 450e9),
        ("400 Gb/s", "bandwidth", 50e9),
        ("400 Gbps", "bandwidth", 50e9),
        ("1 GiB/s", "bandwidth", 2.0**30),
        ("2.5 us", "time", 2.5e-6),
        ("2.5µs", "time", 2.5e-6),
        ("80 GiB", "bytes", 80 * 2.0**30),
        ("80 GB", "bytes", 80e9),
        ("989 TFLOP/s", "flops", 989e12),
        ("1e3 ns", "time", 1e-6),
        (".5 s", "time", 0.5),
    ],
)
def test_text_with_a_unit_becomes_si(text: str, kind: str, value: float):
    assert parse(text, kind, "x") == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (450, "bandwidth", "bare value 450"),
        (4.5, "time", "bare value 4.5"),
        (True, "time", "bare value True"),
        ("450", "bandwidth", "number with a unit"),
        ("450 GB", "bandwidth", "unknown unit 'GB'"),
        ("80 gb", "bytes", "unknown unit 'gb'"),
        ("10 sec", "time", "unknown unit 'sec' in '10 sec'; expected one of s, ms, us, µs, ns, min, h"),
        ("-1 us", "time", "not negative"),
        ("1e999 s", "time", "finite"),
        ("", "time", "number with a unit"),
        ("fast", "time", "number with a unit"),
    ],
)
def test_what_is_no_quantity_is_refused_with_its_place(value: object, kind: str, says: str):
    with pytest.raises(InputError) as caught:
        parse(value, kind, "tier.rail.bandwidth")
    assert str(caught.value).startswith("tier.rail.bandwidth: ")
    assert says in str(caught.value)


@given(st.floats(1e-12, 1e18), st.sampled_from(["time", "bytes", "bandwidth", "flops"]))
def test_what_is_shown_can_be_read_back(value: float, kind: str):
    assert parse(show(value, kind, digits=17), kind, "x") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "kind", "digits", "text"),
    [
        (0.99996, "time", 4, "1 s"),
        (999.6e-6, "time", 3, "1 ms"),
        (999.96e9, "bandwidth", 3, "1 TB/s"),
        (999.5e-6, "time", 4, "999.5 us"),
        (86_400.0, "time", 4, "86400 s"),
        (1.2e15, "bytes", 3, "1200 TB"),
        (-0.5e-3, "time", 4, "-500 us"),
        (0.0, "bytes", 4, "0 B"),
    ],
)
def test_values_are_shown_without_exponents(value: float, kind: str, digits: int, text: str):
    assert show(value, kind, digits) == text
