"""A reader sees the old file or the new one, never half of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.base.errors import InputError
from moesim.base.files import atomic_path, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    target = tmp_path / "plan.json"
    write_text(target, "old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path):
    with pytest.raises(InputError, match="cannot write there"):
        write_text(tmp_path / "no" / "plan.json", "x")


def test_a_folder_is_not_written_over(tmp_path: Path):
    (tmp_path / "plans").mkdir()
    with pytest.raises(InputError, match=r"plans: cannot be written: .*name a file"):
        write_text(tmp_path / "plans", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]
