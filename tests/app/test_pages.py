"""Every page and every path through it, without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moesim.cluster import Cluster
from moesim.placement import Placement
from moesim.trace import Trace

from .conftest import Start, clean, finish, make_trace, titles, value


def planned(start: Start, solver: str = "eplb", **query: str):
    session = start("plan", solver=solver, **query)
    session.button(key="start").click().run()
    return clean(finish(session))


def test_the_first_page_tells_what_the_inputs_are(start: Start):
    session = clean(start())
    assert value(session, "Model") == "16 experts"
    assert value(session, "GPUs") == "8 in 1 node"
    assert "little" in " ".join(one.value for one in session.caption)


@pytest.mark.parametrize("detail", ["Skew", "Drift", "Picked together", "Domains", "Cluster"])
def test_every_look_at_the_inputs(start: Start, detail: str):
    session = start()
    session.segmented_control(key="inputs_detail").set_value(detail).run()
    assert len(titles(clean(session))) == (2 if detail == "Domains" else 1)


def test_other_inputs_are_taken_over_and_survive_a_page_switch(start: Start):
    session = start()
    session.selectbox(key="topology").set_value("preset:h100-1x8").run()
    session.number_input(key="ranks").set_value(4).run()
    assert value(clean(session), "GPUs") == "4 in 1 node"
    session.switch_page("views/plan.py").run()
    session.switch_page("views/inputs.py").run()
    assert session.number_input(key="ranks").value == 4
    assert session.selectbox(key="topology").value == "preset:h100-1x8"


def test_inputs_that_do_not_fit_say_so_and_do_not_break_a_page(start: Start):
    session = start(ranks="999")
    assert "999" in session.error[0].value
    for page in ("plan", "simulation", "compare", "what_if"):
        session.switch_page(f"views/{page}.py").run()
        assert not session.exception
        assert "999" in session.error[0].value


def test_a_small_state_stands_in_the_link_and_an_absurd_link_is_harmless(start: Start):
    session = clean(start("plan", solver="lpt", slots="5"))
    assert session.selectbox(key="solver").value == "lpt"
    assert session.number_input(key="slots").value == 5
    assert session.query_params["solver"] in ("lpt", ["lpt"])
    odd = start(trace="data:0/../../etc/passwd", slots="-7", deadline="nan", solver="no-such", topology="upload:x")
    assert not odd.exception
    assert odd.session_state["trace"] == "sample:bundled-moe-fit.parquet"


def test_without_a_plan_the_page_shows_what_runs_now(start: Start):
    session = clean(start("plan"))
    assert "without a plan" in titles(session)[0]
    assert value(session, "Step time, mean")


def test_a_plan_is_searched_in_the_background_and_shown_before_and_after(start: Start):
    session = start("plan", solver="moesim")
    session.button(key="start").click().run()
    # it outlives a switch to another page, which says that it goes on or shows the result
    session.switch_page("views/inputs.py").run()
    clean(finish(session))
    session.switch_page("views/plan.py").run()
    assert list(session.session_state["plans"]) == ["moesim"]
    assert [one.split(":")[0] for one in titles(clean(session))] == ["Before", "After"]
    assert value(session, "Experts to move")
    for detail in ("Time", "Anytime curve", "If a part fails", "Facts"):
        session.segmented_control(key="plan_detail").set_value(detail).run()
        clean(session)
    session.segmented_control(key="plan_detail").set_value("Anytime curve").run()
    assert titles(session) == ["Best plan so far"]


def test_plans_for_load_reckon_with_other_domains_unless_told_not_to(start: Start):
    notes = {}
    for reckon in (True, False):
        session = start("plan", solver="moesim")
        assert "unseen" not in [box.key for box in session.checkbox]
        session.selectbox(key="aim").set_value("load").run()
        session.checkbox(key="unseen").set_value(reckon).run()
        session.text_input(key="option_moesim_effort").set_value("1e6").run()
        session.button(key="start").click().run()
        clean(finish(session))
        notes[reckon] = " ".join(session.session_state["plans"]["moesim"].notes)
    assert "planned for unseen traffic too" in notes[True]
    assert "unseen" not in notes[False]


def test_every_loss_is_priced_behind_its_button(start: Start):
    session = planned(start, "contiguous", ranks="16", slots="1")
    session.segmented_control(key="plan_detail").set_value("If a part fails").run()
    assert titles(clean(session)) == ["What a failure takes away"]
    assert not session.dataframe
    session.button(key="survive").click().run()
    table = clean(session).dataframe[0].value.set_index("lost")
    assert len(table) == 16 + 2
    assert (table["experts gone"] >= 3).all()
    assert (table["whole again"] == "never: too few slots").all()


def test_a_stopped_search_keeps_the_best_so_far(start: Start):
    session = start("plan", solver="moesim", deadline="600", seed="5")
    session.text_input(key="option_moesim_effort").set_value("1e12").run()
    session.button(key="start").click().run()
    import dash_jobs

    (job,) = [dash_jobs.find(key) for key in session.session_state["awaited"]]
    while not any(job.curves.values()):
        job.finished.wait(0.05)
    assert job.running
    job.stop()
    clean(finish(session))
    (plan,) = session.session_state["plans"].values()
    assert any("stopped on request" in note for note in plan.notes)


def test_the_same_question_is_answered_once(start: Start):
    session = planned(start)
    (first,) = session.session_state["plans"].values()
    session.button(key="start").click().run()
    finish(session)
    assert list(session.session_state["plans"].values()) == [first]


def test_a_solver_that_cannot_run_here_says_why(start: Start):
    session = start("plan", solver="eplb-hierarchical", ranks="16")
    session.button(key="start").click().run()
    finish(session)
    assert not session.exception
    assert "expert groups" in session.error[0].value
    assert not session.session_state["plans"]


@pytest.mark.parametrize("detail", ["Time", "Load", "Node traffic", "Links", "Timeline", "Stragglers"])
def test_every_look_at_a_simulation(start: Start, detail: str):
    session = start("simulation", ranks="16")
    session.segmented_control(key="sim_detail").set_value(detail).run()
    assert titles(clean(session))
    assert value(session, "Step time, mean")


def test_a_simulation_takes_other_settings(start: Start):
    session = start("simulation")
    before = value(session, "Step time, mean")
    session.selectbox(key="sim_schedule").set_value("two-batch").run()
    session.selectbox(key="sim_part").set_value("fitted").run()
    assert value(clean(session), "Step time, mean") != before


def test_every_layer_of_a_step_can_be_looked_at(start: Start):
    session = start("simulation", trace="sample:bundled-moe-fit.parquet", held="sample:bundled-moe-eval.parquet")
    session.segmented_control(key="sim_detail").set_value("Timeline").run()
    session.slider(key="sim_first_layer").set_value(2).run()
    assert any("<span>decoder layers 2 to 7" in one.proto.body for one in clean(session).get("html"))


def test_the_timeline_can_be_taken_to_perfetto(start: Start):
    session = start("simulation")
    session.segmented_control(key="sim_detail").set_value("Timeline").run()
    session.button(key="sim_chrome").click().run()
    assert clean(session).download_button(key="sim_chrome_file")


@pytest.fixture
def compared(start: Start):
    session = start("compare", slots="3")
    session.button(key="cmp_baselines").click().run()
    return clean(finish(session))


def test_plans_stand_side_by_side(compared):
    table = compared.dataframe[0].value
    assert set(table["plan"]) == {"no plan", "contiguous", "round-robin", "snake", "lpt", "eplb"}
    assert (table["step (ms)"] >= table["bound (ms)"]).all()
    assert table["step (ms)"].is_monotonic_increasing


@pytest.mark.parametrize("detail", ["Step time", "Pareto", "Spread", "Expert diff", "Take away"])
def test_every_look_at_a_comparison(compared, detail: str):
    compared.segmented_control(key="cmp_detail").set_value(detail).run()
    assert len(titles(clean(compared))) == {"Spread": 2, "Take away": 0}.get(detail, 1)


def test_a_plan_that_was_put_away_stays_away_and_a_new_one_is_shown(compared):
    compared.multiselect(key="compared").set_value(["no plan", "eplb"]).run()
    assert set(compared.dataframe[0].value["plan"]) == {"no plan", "eplb"}
    compared.switch_page("views/plan.py").run()
    compared.number_input(key="slots").set_value(4).run()
    compared.selectbox(key="solver").set_value("snake").run()
    compared.button(key="start").click().run()
    finish(compared)
    compared.switch_page("views/compare.py").run()
    assert set(compared.dataframe[0].value["plan"]) == {"no plan", "eplb", "snake 2"}


@pytest.mark.parametrize("engine", ["trtllm", "vllm", "vllm-41141", "vllm-49572", "vllm-ascend", "eplb", "csv", "json"])
def test_a_map_for_every_engine_or_the_rule_that_forbids_it(compared, engine: str):
    compared.segmented_control(key="cmp_detail").set_value("Take away").run()
    compared.checkbox(key="out_any").set_value(True).run()
    compared.selectbox(key="out_format").set_value(engine).run()
    assert not compared.exception
    if compared.error:
        assert "rule" in compared.error[0].value
    else:
        assert compared.download_button(key="out_map")


def test_the_report_is_a_page_of_its_own(compared):
    compared.segmented_control(key="cmp_detail").set_value("Take away").run()
    compared.button(key="out_report").click().run()
    clean(compared)
    assert compared.download_button(key="out_report_file")


@pytest.mark.parametrize("detail", ["What drives it", "Load", "Hot links", "Full simulation"])
def test_every_look_at_a_what_if(start: Start, detail: str):
    session = start("what_if", ranks="16")
    session.segmented_control(key="w_detail").set_value(detail).run()
    assert titles(clean(session))[0] == "Step time on held-out steps"


def test_what_is_now_is_what_other_pages_say_or_the_page_tells_why_not(start: Start):
    session = start("plan", solver="eplb", steps="1")
    session.button(key="start").click().run()
    told = value(clean(finish(session)), "Step time, mean")
    assert value(clean(session.switch_page("views/what_if.py").run()), "Step time") == told
    assert not any("The formula looks at" in one.value for one in session.caption)
    more = clean(start("what_if", steps="4"))
    assert any("The formula looks at 2 steps and not at 4" in one.value for one in more.caption)


def test_a_knob_changes_the_numbers_at_once_and_can_be_put_back(start: Start):
    session = start("what_if", ranks="16")
    before = value(session, "Step time")
    session.select_slider(key="w_between").set_value(0.25).run()
    slow = value(clean(session), "Step time")
    assert slow != before
    session.button(key="w_reset").click().run()
    assert value(clean(session), "Step time") == before


def test_knobs_of_every_kind(start: Start):
    session = start("what_if", ranks="16")
    for key, setting in (("w_nodes", 8), ("w_ranks", 32), ("w_slots", 2), ("w_tokens", 32), ("w_inside", 2.0)):
        session.select_slider(key=key).set_value(setting).run()
        clean(session)
    assert value(session, "GPUs") == "32 in 4 nodes"
    session.slider(key="w_domain_law").set_value(0.0).run()
    clean(session)
    assert session.query_params["w_mix"] in ("law=0", ["law=0"])


def test_a_failed_gpu_names_the_experts_that_are_lost(start: Start):
    session = planned(start, "contiguous", ranks="16", slots="1")
    session.switch_page("views/what_if.py").run()
    session.multiselect(key="w_failed").set_value(["node0.gpu3"]).run()
    assert not session.exception
    assert "only copy" in session.warning[0].value


def test_the_full_simulation_runs_behind_its_button(start: Start):
    session = planned(start, "eplb", ranks="16", slots="2")
    session.switch_page("views/what_if.py").run()
    session.segmented_control(key="w_detail").set_value("Full simulation").run()
    assert len(titles(session)) == 1
    session.button(key="w_full").click().run()
    assert len(titles(clean(session))) == 2


def test_a_plan_can_be_loaded_and_a_bad_one_says_what_is_wrong(start: Start, tmp_path: Path):
    session = planned(start)
    (plan,) = session.session_state["plans"].values()
    plan.placement.write(tmp_path / "map.json", format="sglang", spec=make_trace().spec)
    data = (tmp_path / "map.json").read_bytes()
    session.file_uploader(key="up_plan").upload("running.json", data, "application/json").run()
    assert "running.json" in clean(session).session_state["plans"]
    loaded = session.session_state["plans"]["running.json"]
    assert loaded.placement.digest == plan.placement.digest
    session.file_uploader(key="up_plan").upload("bad.json", b'{"no": "map"}', "application/json").run()
    assert not session.exception
    assert session.error[0].value.startswith("bad.json")


def test_a_trace_can_be_uploaded(start: Start, tmp_path: Path):
    make_trace(3).write(tmp_path / "mine.parquet")
    session = start()
    session.file_uploader(key="up_trace").upload("mine.parquet", (tmp_path / "mine.parquet").read_bytes(), "x/y").run()
    clean(session)
    assert session.selectbox(key="trace").value == "upload:trace:mine.parquet"
    assert "trace" not in session.query_params


def test_an_uploaded_trace_lets_go_of_what_belongs_to_the_samples(start: Start, tmp_path: Path):
    make_trace(3).write(tmp_path / "mine.parquet")
    session = start(trace="sample:bundled-moe-fit.parquet", held="sample:bundled-moe-eval.parquet", dims="deepseek-v3")
    session.file_uploader(key="up_trace").upload("mine.parquet", (tmp_path / "mine.parquet").read_bytes(), "x/y").run()
    # of another model than the samples: judged on them it would be refused, and priced as DeepSeek-V3
    clean(session)
    assert session.selectbox(key="held").value == "the rest of the same trace"
    assert session.selectbox(key="dims").value == "its own"


def test_a_bad_upload_says_what_is_wrong_and_keeps_the_inputs(start: Start):
    session = start()
    session.file_uploader(key="up_trace").upload("broken.parquet", b"PAR1 no", "x/y").run()
    assert not session.exception
    assert session.error[0].value.startswith("broken.parquet")
    assert session.selectbox(key="trace").value == "data:0/monday.parquet"
    session.file_uploader(key="up_topology").upload("cluster.toml", b"schema = 1\nnodes = 'x'", "x/y").run()
    assert any(one.value.startswith("cluster.toml") for one in session.error)


def test_an_installation_without_samples_asks_for_a_trace(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import dash_files

    monkeypatch.setattr(dash_files, "_bundled", lambda: tmp_path)
    monkeypatch.setenv("MOESIM_APP_DATA", "")
    session = start(trace="sample:bundled-moe-fit.parquet", held="sample:bundled-moe-eval.parquet")
    assert not session.exception
    assert "upload a trace" in session.warning[0].value
    session.switch_page("views/what_if.py").run()
    assert not session.exception
    assert "choose one of the list" in session.error[0].value


def test_many_domains_are_shown_as_the_largest_and_the_rest(start: Start, folder: Path):
    import dash_ui

    trace = make_trace()
    request = np.asarray(trace.request)
    names = tuple(f"subject {i}" for i in range(30))
    many = Trace(trace.spec, routes=trace.routes, request=request, domain=request % 30, domains=names)
    many.write(folder / "many.parquet")
    session = start(trace="data:0/many.parquet", held="the rest of the same trace")
    session.segmented_control(key="inputs_detail").set_value("Domains").run()
    rows, bits = (json.loads(one.proto.spec)["data"][0]["y"] for one in clean(session).get("plotly_chart"))
    assert len(rows) == dash_ui.MOST_DOMAINS + 1
    assert rows[-1].startswith("14 others (4")
    assert len(bits) == dash_ui.MOST_DOMAINS
    assert any("16 largest of 30" in one.value for one in session.caption)
    session.switch_page("views/what_if.py").run()
    assert len([one for one in clean(session).slider if one.key.startswith("w_domain_")]) == dash_ui.MOST_DOMAINS


def test_domains_too_small_for_a_step_are_not_compared(start: Start, folder: Path):
    trace = make_trace()
    request = np.asarray(trace.request)
    names = tuple(f"subject {i}" for i in range(60))
    Trace(trace.spec, routes=trace.routes, request=request, domain=request % 60, domains=names).write(
        folder / "tiny.parquet"
    )
    session = start("compare", trace="data:0/tiny.parquet", held="the rest of the same trace", ranks="8")
    session.segmented_control(key="cmp_detail").set_value("Spread").run()
    assert len(titles(clean(session))) == 1
    assert "fill a step of 16 tokens a GPU" in session.info[-1].value


def test_a_move_is_priced_as_migrate_prices_it_and_never_pays_where_steps_get_longer(compared):
    table = compared.dataframe[0].value.set_index("plan")
    assert table.loc["no plan", "move (GB)"] == table.loc["no plan", "paid after (s)"] == 0
    better = table["step (ms)"] < table.loc["no plan", "step (ms)"]
    moved = table["move (GB)"] > 0
    assert (table.loc[better & moved, "paid after (s)"] > 0).all()
    assert table.loc[~better & moved, "paid after (s)"].isna().all()


def test_a_move_into_further_slots_is_of_the_copies_that_are_new(start: Start):
    import dash_work

    one = np.arange(16).reshape(1, 8, 2)
    before = SimpleNamespace(placement=Placement(one, 16))
    after = SimpleNamespace(placement=Placement(np.concatenate([one, (one[..., :1] + 2) % 16], axis=2), 16))
    cluster = Cluster.preset("h100-1x8")
    given = SimpleNamespace(cluster=cluster, costs=SimpleNamespace(spec=SimpleNamespace(expert_bytes=1e9)))
    move = dash_work.moving(before, after, given)(SimpleNamespace(say=lambda text: None))
    assert (move.moves, move.bytes) == (8, 8e9)
    assert move.seconds >= 1e9 / 320e9
    back = dash_work.moving(after, before, given)(SimpleNamespace(say=lambda text: None))
    assert back.moves == 0
