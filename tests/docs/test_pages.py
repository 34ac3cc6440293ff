"""README and docs say what is so: links lead somewhere, commands exist, the example runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "traces").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def commands_of(page: Path) -> list[str]:
    """The commands of moesim in the blocks of a page, continued lines joined."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.S | re.M)
    blocks += re.findall(r"^    moesim .*(?:\n    .*)*", text, re.M)
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    return re.findall(r"(?:^ *|\$ |-m )(moesim [^#\n]*)", joined, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_docs_exists_and_takes_its_options(page: Path):
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## moesim ([\w ]+)\n(.*?)(?=^## |\Z)", reference, re.S | re.M))
    for command in commands_of(page):
        words = shlex.split(command)[1:]
        verb = " ".join(words[:2]) if " ".join(words[:2]) in sections else words[0]
        assert verb in sections, command
        for word in words:
            if re.fullmatch(r"--?[a-z][\w-]*", word):
                assert f"`{word}`" in sections[verb], f"moesim {verb} has no {word}: {command}"


def test_commands_are_found_in_every_kind_of_block():
    found = {str(page.relative_to(ROOT)): len(commands_of(page)) for page in PAGES}
    assert found["README.md"] >= 9
    assert found["docs/formats.md"] >= 11
    assert found["docs/calibration.md"] == 2
    assert sum(found.values()) >= 60


def test_every_make_target_of_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = set(re.findall(r"`?make (\w+)`?", text))
    assert {"demo", "test"} <= named <= set(targets)


def test_the_python_example_of_the_readme_runs(tmp_path: Path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    # the same lines, written where the test may write
    code = example.replace('"traces/', f'"{ROOT}/traces/').replace('"experts.json"', f'r"{tmp_path}/experts.json"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step" in done.stdout
    assert (tmp_path / "experts.json").stat().st_size > 1000


def test_the_examples_of_plug_ins_pass_their_judges():
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(examples) == 2
    for example in examples:
        assert "\ncheck_" in example
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_plug_in_group_is_on_the_page():
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "moesim").rglob("*.py"))
    groups = set(
        re.findall(
            r'"(moesim\.(?:\w+_)?(?:solvers|policies|transports|networks|computes|formats|exports|routers))"', code
        )
    )
    assert len(groups) >= 9
    assert groups == set(re.findall(r"`(moesim\.\w+)` \|", text))


def test_decisions_are_numbered_without_gaps_and_listed_under_their_titles():
    folder = ROOT / "docs" / "decisions"
    pages = sorted(folder.glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    listed = dict(re.findall(r"^\| \[\d{4}\]\(([^)]+)\) \| (.+) \|$", (folder / "README.md").read_text("utf-8"), re.M))
    titles = {page.name: page.read_text("utf-8").splitlines()[0] for page in pages}
    assert titles == {name: f"# {name[:4]} {title}" for name, title in listed.items()}
