"""A dashboard without a browser, on a small trace that plans in moments."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.spec import ModelSpec
from moesim.trace import Trace

from .serving import PATIENCE_S, ROOT

pytest.importorskip("streamlit", reason="needs the extra `app`", exc_type=ImportError)

APP = ROOT / "app"
SPEC = ModelSpec("little", (1, 2, 3), 4, experts=16, top_k=2, hidden=2048, intermediate=1024)


def make_trace(seed: int = 0, tokens: int = 6000) -> Trace:
    """Routes with hot experts and two domains."""
    rng = np.random.default_rng(seed)
    request = np.arange(tokens) // 20
    domain = request % 2
    popularity = np.random.default_rng(7).normal(size=(2, SPEC.layers, SPEC.experts))[domain]
    noise = rng.gumbel(size=(tokens, SPEC.layers, SPEC.experts))
    routes = np.argsort(-(popularity + noise), axis=2)[:, :, :2].astype(np.int16)
    return Trace(SPEC, routes=routes, request=request, domain=domain, domains=("law", "code"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is given at start: two traces, and one thing that is none."""
    place = tmp_path_factory.mktemp("data")
    make_trace(0).write(place / "monday.parquet")
    make_trace(1).write(place / "tuesday.parquet")
    (place / "notes.md").write_text("no trace\n", encoding="utf-8")
    return place


Start = Callable[..., Any]


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a session on the small trace; ``query`` is what the link says, None of it takes the samples."""
    from streamlit import config
    from streamlit.testing.v1 import AppTest

    # as in the dashboard's own config.toml, which a session without a server does not read
    config.set_option("runner.magicEnabled", False)
    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.setenv("MOESIM_APP_DATA", str(folder))
    import dash_ui

    # kernels that compile for the first time take long; a test looks at the page that comes after
    monkeypatch.setattr(dash_ui, "_PATIENCE_S", PATIENCE_S)

    def begin(page: str = "inputs", **query: str) -> Any:
        session = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=2 * PATIENCE_S)
        small = {"trace": "data:0/monday.parquet", "held": "data:0/tuesday.parquet", "dims": "its own",
                 "ranks": "8", "tokens": "64", "deadline": "3"}  # fmt: skip
        for key, value in (small | query).items():
            session.query_params[key] = value
        session.run()
        return session if page == "inputs" else session.switch_page(f"views/{page}.py").run()

    # a session puts its script there, and a process that is spawned later would run it
    main = sys.modules["__main__"]
    yield begin
    sys.modules["__main__"] = main
    for name in [one for one in sys.modules if one.startswith("dash_")]:
        del sys.modules[name]


def clean(session: Any) -> Any:
    """Check that a session shows neither exceptions nor errors, and return it."""
    assert not session.exception, [one.value for one in session.exception]
    assert not session.error, [one.value for one in session.error]
    return session


def finish(session: Any) -> Any:
    """Run a session until its planning jobs have ended, as the timer of the page does."""
    end = time.monotonic() + PATIENCE_S
    while session.session_state["awaited"] and time.monotonic() < end:
        time.sleep(0.05)
        session.run()
    assert not session.session_state["awaited"]
    return session


def value(session: Any, label: str) -> str:
    """The value of a key figure."""
    return next(one.value for one in session.metric if one.label == label)


def titles(session: Any) -> list[str]:
    """The titles of the figures on the page."""
    texts = re.findall(r'class="figure-title"><b>(.*?)</b>', " ".join(one.proto.body for one in session.get("html")))
    assert len(texts) == len(session.get("plotly_chart"))
    return texts
