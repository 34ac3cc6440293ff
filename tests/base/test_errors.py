"""Errors say what was wrong, where, and what to do; they survive process pools."""

from __future__ import annotations

import pickle

import pytest

from moesim.base.errors import FormatError, Infeasible, MissingExtra, MoesimError, TooShort, UnknownName


def test_an_unknown_name_suggests_the_nearest_one():
    error = UnknownName("solver", "epbl", ["eplb", "lpt", "moesim"])
    assert str(error) == "unknown solver 'epbl': did you mean 'eplb'? choose one of eplb, lpt, moesim"


def test_a_name_like_no_other_gets_no_suggestion():
    assert "did you mean" not in str(UnknownName("solver", "qqqqqq", ["eplb"]))


def test_a_format_error_names_file_and_place():
    assert str(FormatError("a.toml", "tier.rail", "expected a table")) == "a.toml: tier.rail: expected a table"
    assert str(FormatError("a.toml", "", "truncated")) == "a.toml: truncated"


def test_a_format_error_is_one_line_whatever_the_file_holds():
    assert str(FormatError("x.json", "a\nb", "no\r\nway\n")) == "x.json: a b: no way"


@pytest.mark.parametrize(
    "error",
    [
        UnknownName("solver", "x", ["y"]),
        UnknownName("topology", "x", ["y"], "or give a file"),
        FormatError("f", "p", "q"),
        MissingExtra("torch", "gpu"),
        Infeasible("no room"),
        TooShort("no step", "give more"),
    ],
)
def test_errors_come_back_whole_from_another_process(error: MoesimError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_exit_codes_tell_infeasible_from_wrong_input():
    assert Infeasible("x").exit_code == 3
    assert UnknownName("a", "b", []).exit_code == 1
