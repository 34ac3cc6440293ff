"""What the dashboard must never do: open pickles, leave its folders, swell, or answer other machines by default."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moesim.base.errors import InputError, MoesimError

from .conftest import APP, SPEC


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.setenv("MOESIM_APP_DATA", str(folder))
    import dash_files

    return dash_files


class Bomb:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["trace.npz", "trace.npy", "trace.jsonl", "trace.json", "trace.parquet", "trace.pt"])
def test_a_pickle_is_never_opened_under_any_name(files: ModuleType, tmp_path: Path, name: str):
    mark = tmp_path / "opened"
    plain = pickle.dumps(Bomb(mark))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
    array = io.BytesIO()
    np.save(array, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    for data in (plain, inner.getvalue(), array.getvalue()):
        with pytest.raises(MoesimError, match=r"^trace\."):
            files.upload_trace(name, data, "olmoe-1b-7b")
        with pytest.raises(MoesimError, match=r"^trace\."):
            files.upload_plan(name, data, 8, SPEC)
        assert not mark.exists()


def test_what_is_wrong_with_an_upload_is_said_in_the_words_of_the_page(files: ModuleType):
    for data, message in (
        (b"", "no trace format knows this file"),
        (b"PAR1 and no more", "not a complete Parquet file"),
    ):
        with pytest.raises(InputError, match=rf"^cut\.parquet: {message}"):
            files.upload_trace("cut.parquet", data, None)
    counts = io.BytesIO()
    np.savez(counts, counts=np.ones((3, 16), int))
    with pytest.raises(InputError, match=r"^counts\.npz: .* give the recorded model \("):
        files.upload_trace("counts.npz", counts.getvalue(), None)


@pytest.mark.parametrize(
    "reference",
    ["data:0/../secret.parquet", "data:0//etc/passwd", "data:1/monday.parquet", "data:x/monday.parquet",
     "sample:../pyproject.toml", "/etc/passwd", "data:0/link.parquet", "upload:trace:mine"],
)  # fmt: skip
def test_no_path_leads_out_of_the_folders(files: ModuleType, folder: Path, reference: str):
    (folder.parent / "secret.parquet").write_bytes(b"PAR1")
    link = folder / "link.parquet"
    if not link.is_symlink():
        link.symlink_to(folder.parent / "secret.parquet")
    with pytest.raises(InputError, match="started with"):
        files.locate(reference)
    assert "data:0/link.parquet" not in files.offered("trace")


def test_only_files_of_the_right_kind_are_offered(files: ModuleType):
    offered = [key for key in files.offered("trace") if key.startswith("data:")]
    # tests of pages put further traces into the folder
    assert {"data:0/monday.parquet", "data:0/tuesday.parquet"} <= set(offered)
    assert "data:0/notes.md" not in offered


def test_what_swells_is_refused_before_it_is_unpacked(files: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_MOST_UNPACKED", 10_000_000)
    packed = io.BytesIO()
    np.savez_compressed(packed, topk_ids=np.zeros((20_000_000,), np.int8))
    assert len(packed.getvalue()) < 100_000
    with pytest.raises(InputError, match="unpacked"):
        files.upload_trace("bomb.npz", packed.getvalue(), None)


def test_an_error_names_the_upload_and_not_where_it_lay(files: ModuleType):
    with pytest.raises(InputError) as caught:
        files.upload_cluster("mine.toml", b"schema = 1\n")
    assert "mine.toml" in str(caught.value)
    assert "/tmp" not in str(caught.value)


def test_endings_that_are_programs_are_refused_with_a_way_out(files: ModuleType):
    with pytest.raises(InputError, match="moesim import"):
        files.upload_trace("dump.pt", b"", None)


def test_the_settings_bind_to_this_machine_and_tell_nobody():
    settings = tomllib.loads((APP / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["server"]["maxUploadSize"] <= 256


def test_the_verb_says_what_is_missing(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "moesim", "app", "--data", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is no folder" in done.stderr
