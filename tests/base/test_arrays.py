"""Value types hold read-only arrays whose shapes were checked at birth."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from moesim.base.arrays import Array, Sealed, digest, seal
from moesim.base.errors import InputError


@dataclass(frozen=True)
class Box(Sealed):
    load: Array

    def __post_init__(self) -> None:
        seal(self, "load", self.load, np.int32, ("layers", "ranks"), {"ranks": 3})


def test_arrays_cannot_be_written_to():
    box = Box(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        box.load[0, 0] = 1


def test_the_giver_keeps_a_writable_array_of_their_own():
    mine = np.zeros((2, 3), np.int32)
    box = Box(mine)
    mine[0, 0] = 7
    assert box.load[0, 0] == 0


def test_copies_from_other_processes_are_sealed_again():
    copy = pickle.loads(pickle.dumps(Box(np.zeros((2, 3)))))
    assert not copy.load.flags.writeable


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(3), "expected axes [layers, ranks]"),
        (np.zeros((2, 4)), "expected 3 ranks, got 4"),
        (np.full((1, 3), 0.5), "do not fit int32"),
        (np.full((1, 3), 2**40), "do not fit int32"),
        ([["a", "b", "c"]], "expected int32 values"),
    ],
)
def test_a_wrong_array_is_refused_by_name(value: object, says: str):
    with pytest.raises(InputError) as caught:
        Box(value)
    assert str(caught.value).startswith("Box.load: ")
    assert says in str(caught.value)


def test_a_digest_names_content_not_identity():
    assert digest(Box(np.ones((2, 3)))) == digest(Box(np.ones((2, 3))))
    assert digest(Box(np.ones((2, 3)))) != digest(Box(np.zeros((2, 3))))
    assert digest(np.zeros(2, np.int32)) != digest(np.zeros(2, np.int64))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(["ab", "c"]) != digest(["a", "bc"])
