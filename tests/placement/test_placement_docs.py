"""The page on placements runs, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from moesim.placement import PLACEMENT_FORMATS, POLICIES


def test_the_examples_print_what_their_comments_say(root: Path) -> None:
    page = (root / "docs" / "placement.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/placement.md", "exec"), {})
    said = re.findall(r"^print\(.*\)\s+# (.*)$", code, re.MULTILINE)
    assert len(said) == 2
    assert printed.getvalue().splitlines() == said


def test_every_policy_and_format_is_on_the_page(root: Path) -> None:
    page = (root / "docs" / "placement.md").read_text()
    for name in [*POLICIES.names(), *PLACEMENT_FORMATS.names()]:
        assert f"| `{name}` |" in page
