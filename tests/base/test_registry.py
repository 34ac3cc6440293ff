"""Plug-ins are found by name and imported when first asked for."""

from __future__ import annotations

import math

import pytest

from moesim.base.errors import UnknownName
from moesim.base.registry import Registry


def test_a_plugin_is_found_by_name():
    registry: Registry[object] = Registry("function", {"root": "math:sqrt"}, "moesim.test_functions")
    assert registry.get("root") is math.sqrt
    assert registry.names() == ["root"]


def test_an_unknown_plugin_is_an_error_with_a_hint():
    registry: Registry[object] = Registry("function", {"root": "math:sqrt"}, "moesim.test_functions")
    with pytest.raises(UnknownName, match="did you mean 'root'"):
        registry.get("rot")


def test_a_broken_built_in_is_a_bug_and_raises_as_one():
    registry: Registry[object] = Registry("function", {"root": "math:no_such"}, "moesim.test_functions")
    with pytest.raises(AttributeError):
        registry.get("root")
