"""Figures say what their data says: values, units, one scale, one palette."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from moesim import figures
from moesim.base.errors import InputError
from moesim.cluster import Cluster
from moesim.figures import theme
from moesim.placement import Placement
from moesim.simulate.phases import PHASES
from moesim.simulate.report import SPAN

NODE = np.array([0, 0, 1, 1])
TOKENS = np.array([[10.0, 10, 10, 10], [0, 20, 40, 20]])
CLUSTER = Cluster.preset("h100-4x8-rail")
CURVE = [(0.5, 2e-3), (1.0, 1.5e-3), (2.0, 1e-3)]
LIFT = np.array([[np.nan, 4.0, 0.5], [4.0, np.nan, 1.0], [0.5, 1.0, np.nan]])
PLANS = ["small", "middle", "large", "bad"]
COST, STEP = [1.0, 2.0, 3.0, 3.5], [3.0, 2.0, 1.0, 2.5]
KNOBS = {"batch": (("x 1/2", 0.6e-3), ("x 2", 1.9e-3)), "NIC": (("x 1/2", 1.2e-3), ("x 2", 0.9e-3))}
BEFORE, AFTER = Placement([[[0, 1], [1, 2]]], 3), Placement([[[0, 1], [0, 2]]], 3)


def spans() -> np.ndarray:
    rows = [
        # step, layer, micro-batch, rank, phase, start, stop, wait
        (0, 0, 0, 0, PHASES.index("attention"), 0.0, 10e-6, 0.0),
        (0, 0, 0, 0, PHASES.index("dispatch"), 10e-6, 40e-6, 5e-6),
        (0, 1, 0, 1, PHASES.index("experts"), 40e-6, 60e-6, 0.0),
        (1, 0, 0, 0, PHASES.index("attention"), 0.0, 99e-6, 0.0),
    ]
    return np.array(rows, dtype=SPAN)


def every_figure(dark: bool) -> dict[str, go.Figure]:
    return {
        "load_heatmap": figures.load_heatmap(TOKENS, NODE, dark=dark),
        "node_traffic": figures.node_traffic([[5e9, 1e9], [2e9, 5e9]], dark=dark),
        "expert_loads": figures.expert_loads(TOKENS, dark=dark),
        "topology": figures.topology(CLUSTER, np.zeros(CLUSTER.links), dark=dark),
        "timeline": figures.timeline(spans(), PHASES, dark=dark),
        "comparison": figures.comparison({"a": {"experts": 1e-3}}, bound_s=5e-4, dark=dark),
        "layer_split": figures.layer_split({"experts": [1e-3, 2e-3], "wait": [0, 1e-3]}, dark=dark),
        "anytime": figures.anytime({"ours": CURVE}, bound_s=5e-4, baselines={"eplb": 2e-3}, dark=dark),
        "divergence": figures.divergence([[0, 0.1], [0.1, 0]], ["a", "b"], title="Drift", dark=dark),
        "coactivation": figures.coactivation(LIFT, layer=3, dark=dark),
        "domain_experts": figures.domain_experts([[3, 1], [1, 3]], ["law", "code"], [10, 30], layer=0, dark=dark),
        "spread": figures.spread(
            {"a": [1.0, 2.0], "b": [1.5, 1.6]}, ["0", "1"], title="Spread", item="step", value_label="ms", dark=dark
        ),
        "sensitivity": figures.sensitivity(1e-3, KNOBS, dark=dark),
        "losses": figures.losses(BEFORE, [[1, 2, 3]], [0, 1], dark=dark),
        "placement_diff": figures.placement_diff(BEFORE, AFTER, 0, [0, 1], dark=dark),
        "stragglers": figures.stragglers([1e-3, 3e-3], [2e-3, 0], [0, 1], dark=dark),
        "tradeoff": figures.tradeoff([1, 2], [4.0, 3.0], x_title="GPUs", y_title="step (ms)", dark=dark),
        "lines": figures.lines(
            {"a": ([1, 2], [3.0, 4.0])}, title="Lines", subtitle="one curve", x_title="GPUs", y_title="ms", dark=dark
        ),
    }


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", sorted(set(figures.__all__) - {"largest_ratio", "topology_layout", "untitled"}))
def test_every_figure_has_a_title_a_subtitle_and_the_common_look(name: str, dark: bool):
    figure = every_figure(dark)[name]
    assert figure.layout.title.text
    assert figure.layout.title.subtitle.text
    assert figure.layout.template.layout.paper_bgcolor == theme.paper(dark)
    json.loads(figure.to_json())


@pytest.mark.parametrize(
    "name",
    sorted(set(figures.__all__) - {"largest_ratio", "topology_layout", "untitled", "topology", "divergence"}),
)
def test_axes_say_what_they_are(name: str):
    figure = every_figure(False)[name]
    assert figure.layout.xaxis.title.text or figure.layout.yaxis.title.text


def test_the_load_heatmap_shows_load_over_the_mean_of_the_layer():
    heat = figures.load_heatmap(TOKENS, NODE, layer_ids=[3, 4]).data[0]
    assert heat.z.tolist() == [[1, 1, 1, 1], [0, 1, 2, 1]]
    assert list(heat.y) == ["3", "4"]
    assert (heat.zmin, heat.zmax) == (0, 2)


def test_the_colour_of_balance_stands_at_one():
    # plotly.js takes another scale altogether where the ends are not 0 and 1 to the bit
    for largest in (1.25, 2.0, 7.0, *np.random.default_rng(0).uniform(1.25, 9, 500)):
        positions, colours = zip(*theme.diverging(False, largest), strict=True)
        assert list(positions) == sorted(positions)
        assert (positions[0], positions[-1]) == (0, 1)
        middle = colours.index("#f7f7f7")
        assert positions[middle] * largest == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(set(figures.__all__) - {"largest_ratio", "topology_layout", "untitled"}))
def test_a_figure_without_its_title_has_the_same_room_for_its_data(name: str):
    figure = every_figure(False)[name]
    before = figure.to_json()
    title, subtitle, bare = figures.untitled(figure)
    assert f"<b>{title}</b>" == figure.layout.title.text
    assert subtitle == figure.layout.title.subtitle.text
    assert bare.layout.title.text is None
    above = figure.layout.margin.t or figure.layout.template.layout.margin.t
    assert bare.layout.height - bare.layout.margin.t == figure.layout.height - above
    assert figure.to_json() == before


def test_phases_that_take_no_time_are_left_out():
    drawn = figures.layer_split({"experts": [1e-3, 2e-3], "shared": [0, 0], "wait": [0, 1e-3]})
    assert [bar.name for bar in drawn.data] == ["routed experts", "waiting for others"]


def test_one_plan_alone_is_not_the_fastest():
    subtitle = figures.comparison({"mine": {"experts": 1e-3}}).layout.title.subtitle.text
    assert subtitle.startswith("mine, 1 ms")
    twins = figures.comparison({name: {"experts": 1e-3} for name in ("now", "what if")})
    assert twins.layout.title.subtitle.text.startswith("all alike, 1 ms")


def test_the_worst_of_many_items_is_named():
    names = [f"subject {i}" for i in range(20)]
    text = figures.spread(
        {"a": np.arange(20.0)}, names, title="Spread", item="domain", value_label="ms"
    ).layout.title.subtitle.text  # fmt: skip
    assert text.endswith("worst: subject 19")


def test_two_heatmaps_with_one_limit_share_a_scale():
    flat, peaked = np.ones((1, 4)), TOKENS[1:]
    limit = max(figures.largest_ratio(flat), figures.largest_ratio(peaked))
    scales = [figures.load_heatmap(load, NODE, limit=limit).data[0] for load in (flat, peaked)]
    assert scales[0].zmax == scales[1].zmax == 2
    assert scales[0].colorscale == scales[1].colorscale


def test_nodes_are_told_apart_by_one_list_of_lines():
    shapes = figures.load_heatmap(TOKENS, NODE).layout.shapes
    assert [shape.x0 for shape in shapes] == [1.5]


def test_a_rank_without_any_load_in_the_layer_is_drawn_as_balanced():
    assert figures.load_heatmap(np.zeros((1, 4)), NODE).data[0].z.tolist() == [[1, 1, 1, 1]]


def test_node_traffic_is_per_step_and_leaves_the_diagonal_out_of_the_colours():
    heat, diagonal = figures.node_traffic([[8e9, 4e6], [2e6, 8e9]], steps=2).data
    assert np.isnan(np.diag(heat.z)).all()
    assert (heat.z[0][1], heat.z[1][0]) == (2, 1)
    assert heat.colorbar.title.text == "MB a step"
    # a map, whose text shrinks with its cells: on a phone that of a scatter ran over them
    assert diagonal.type == "heatmap"
    assert [list(row) for row in diagonal.text] == [["4,000", ""], ["", "4,000"]]
    assert [list(row) for row in heat.text] == [["", "2"], ["1", ""]]


def test_many_nodes_have_no_numbers():
    figure = figures.node_traffic(np.ones((32, 32)))
    assert len(figure.data) == 1
    assert figure.data[0].texttemplate == ""


def test_experts_stand_hottest_first_and_keep_their_number():
    heat = figures.expert_loads([[1, 3, 2, 2]]).data[0]
    assert heat.z.tolist() == [[1.5, 1, 1, 0.5]]
    assert heat.customdata.tolist() == [[1, 2, 3, 0]]


def test_the_timeline_is_in_microseconds_of_one_step_and_begins_with_the_wait():
    bars = {trace.name: trace for trace in figures.timeline(spans(), PHASES).data}
    assert bars["attention and gate"].x.tolist() == pytest.approx([10])
    assert bars["dispatch"].base.tolist() == pytest.approx([15])
    assert bars["dispatch"].x.tolist() == pytest.approx([25])
    assert bars["waiting for others"].base.tolist() == pytest.approx([10])
    assert bars["waiting for others"].x.tolist() == pytest.approx([5])
    assert bars["routed experts"].y.tolist() == [1]


def test_the_timeline_takes_a_step_and_layers():
    second = figures.timeline(spans(), PHASES, step=1)
    assert second.data[0].x.tolist() == pytest.approx([99])
    one = figures.timeline(spans(), PHASES, layers=(1, 2), layer_ids=[7, 9])
    assert [trace.name for trace in one.data] == ["routed experts"]
    assert one.data[0].customdata.tolist() == [9]


def test_a_timeline_of_nothing_is_an_error():
    with pytest.raises(InputError, match="spans=True"):
        figures.timeline(spans()[:0], PHASES)
    with pytest.raises(InputError, match="step 7"):
        figures.timeline(spans(), PHASES, step=7)
    with pytest.raises(InputError, match="choose fewer layers"):
        figures.timeline(np.repeat(spans()[:1], 20_001), PHASES)


def test_plans_stand_fastest_first_and_their_phases_add_up():
    slow, fast = {"dispatch": 3e-3, "experts": 2e-3}, {"dispatch": 1e-3, "experts": 2e-3}
    figure = figures.comparison({"slow": slow, "fast": fast}, bound_s=2.5e-3)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert all(list(bar.y) == ["fast", "slow"] for bar in bars)
    assert np.sum([bar.x for bar in bars], axis=0).tolist() == pytest.approx([3, 5])
    assert figure.layout.shapes[0].x0 == pytest.approx(2.5)
    assert "fastest: fast" in figure.layout.title.subtitle.text


def test_phases_have_the_same_colour_everywhere():
    seen: dict[str, set[str]] = {}
    for figure in every_figure(False).values():
        for trace in figure.data:
            if trace.type == "bar":
                seen.setdefault(trace.name, set()).add(trace.marker.color)
    assert all(len(colours) == 1 for colours in seen.values())
    assert set(theme.PHASE_COLOURS) == set(theme.PHASE_LABELS) == set(theme.ORDER)
    assert set(PHASES) < set(theme.ORDER)


def test_the_topology_draws_every_cable_once_in_its_class_of_use():
    busy = np.zeros(CLUSTER.links)
    busy[6] = 0.9
    figure = figures.topology(CLUSTER, busy)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines"}
    assert set(lines) == {"0% to 5% busy", "70% to 100% busy"}
    cables = {name: sum(x is None for x in trace.x) for name, trace in lines.items()}
    assert cables == {"0% to 5% busy": CLUSTER.links // 2 - 1, "70% to 100% busy": 1}
    assert CLUSTER.link_name[6] in figure.layout.title.subtitle.text


def test_the_layout_puts_tiers_in_rows_and_nodes_apart():
    x, y = figures.topology_layout(CLUSTER)
    row = {name: set(y[[i for i, v in enumerate(CLUSTER.vertices) if match(v)]]) for name, match in ROWS.items()}
    assert row == {"nvlink": {0}, "gpu": {1}, "nic": {2}, "rail": {3}, "spine": {4}}
    gpus = x[: CLUSTER.ranks]
    assert np.diff(gpus).min() == 1
    assert (np.diff(gpus) > 1).sum() == CLUSTER.nodes - 1


ROWS = {
    "nvlink": lambda name: name.endswith(".switch"),
    "gpu": lambda name: ".gpu" in name,
    "nic": lambda name: ".nic" in name,
    "rail": lambda name: name.startswith("rail"),
    "spine": lambda name: name.startswith("spine"),
}


@pytest.mark.parametrize("name", ["h100-1x8", "gb200-nvl72", "h100-fat-tree-oversub"])
def test_other_clusters_and_sub_clusters_can_be_drawn(name: str):
    cluster = Cluster.preset(name)
    figures.topology(cluster)
    part = cluster.restrict(range(4))
    drawn = figures.topology(part, np.full(part.links, 0.5))
    idle = next(trace for trace in drawn.data if trace.mode == "markers" and trace.customdata is not None)
    assert sum("= rank" in text for text in idle.customdata) == 4


def test_the_anytime_curve_holds_until_something_better_is_found():
    figure = figures.anytime({"ours": CURVE}, bound_s=5e-4, baselines={"eplb": 2e-3})
    assert figure.data[0].line.shape == "hv"
    assert list(figure.data[0].y) == pytest.approx([2, 1.5, 1])
    assert [shape.y0 for shape in figure.layout.shapes] == pytest.approx([2, 0.5])
    assert "1 ms a step, at most 100% from the optimum" in figure.layout.title.subtitle.text
    held = figures.anytime({"ours": CURVE}, until_s=9.0).data[0]
    assert (held.x[-1], held.y[-1]) == (9, 1)
    assert len(figures.anytime({"ours": CURVE}, until_s=1.0).data[0].x) == len(CURVE)


def test_before_the_first_plan_the_axes_are_those_of_what_it_will_be_compared_with():
    waiting = figures.anytime({"ours": []}, baselines={"eplb": 2e-3}, until_s=4.0)
    assert "waiting" in waiting.layout.title.subtitle.text
    assert waiting.layout.yaxis.range == (0, pytest.approx(2.4))
    assert waiting.layout.xaxis.range == (0, 4)
    assert figures.anytime({}).layout.yaxis.showticklabels is False


def test_levels_that_are_near_share_their_text():
    figure = figures.lines(
        {"a": ([1, 2], [0.0, 10.0])},
        title="Lines",
        x_title="s",
        y_title="%",
        levels={"high": 9.9, "low": 2.0, "top": 10.1},
    )
    assert {(one.text, one.y) for one in figure.layout.annotations} == {("low", 2.0), ("high, top", 9.9)}
    assert {shape.y0 for shape in figure.layout.shapes} == {2.0, 9.9, 10.1}


def test_the_front_is_what_nothing_beats_in_both():
    figure = figures.tradeoff(COST, STEP, names=PLANS, x_title="weights (GB)", y_title="step (ms)")
    line, points = figure.data
    assert list(line.y) == [3, 2, 1]
    assert line.line.shape == "hv"
    assert list(points.marker.symbol) == ["circle", "circle", "circle", "circle-open"]
    assert figure.layout.title.text == "<b>step against weights</b>"
    assert figure.layout.title.subtitle.text.startswith("lower left is better; 3 of 4 are beaten by no other")
    assert figure.layout.title.subtitle.text.endswith(": small, middle, large")


def test_a_front_may_lead_upwards_and_points_without_a_value_are_left_out():
    figure = figures.tradeoff(
        [1.0, 2.0, 3.0, np.nan], [1.0, 3.0, 2.0, 9.0], y_goal="max", groups=["a", "b", "a", "b"], x_title="GPUs",
        y_title="tokens",
    )  # fmt: skip
    assert list(figure.data[0].y) == [1, 3]
    assert [list(trace.x) for trace in figure.data[1:]] == [[1, 3], [2]]
    assert "upper left is better; 2 of 3" in figure.layout.title.subtitle.text


def test_plans_that_lie_on_one_another_share_a_label():
    figure = figures.tradeoff(
        [*COST, 3.001], [*STEP, 1.001], names=[*PLANS, "twin"], x_title="GB", y_title="ms", dark=True
    )  # fmt: skip
    words = figure.layout.annotations
    assert {one.text for one in words} == {"small", "middle", "large, twin", "bad"}
    # no line runs through a name
    assert {one.bgcolor for one in words} == {theme.paper(True)}


def test_pairs_picked_together_stand_side_by_side_in_doublings():
    heat = figures.coactivation(LIFT, layer=0).data[0]
    order = heat.customdata[:, 0, 0].astype(int).tolist()
    assert abs(order.index(0) - order.index(1)) == 1
    assert heat.z[order.index(0)][order.index(1)] == pytest.approx(2)
    # less often than by chance is as pale as by chance; hovering tells
    assert heat.z[order.index(0)][order.index(2)] == 0
    assert heat.customdata[order.index(0), order.index(2), 2] == pytest.approx(0.5)


def test_domains_are_compared_with_all_traffic():
    assert dict(theme.around_zero(False))[0.5] == "#f7f7f7"
    heat = figures.domain_experts([[3, 1], [1, 3]], ["law", "code"], [10, 30], layer=0).data[0]
    assert list(heat.y) == ["law (25%)", "code (75%)"]
    assert heat.customdata[0, :, 1].tolist() == pytest.approx([1.5, 0.5])


def test_the_diff_tells_what_comes_leaves_and_stays():
    figure = figures.placement_diff(BEFORE, AFTER, 0, [0, 1], names=("eplb", "ours"))
    assert figure.data[0].z.tolist() == [[1, 3], [1, 2], [0, 1]]
    assert figure.layout.title.subtitle.text == "1 copies come, 1 leave, 3 stay"
    with pytest.raises(InputError, match="take two alike"):
        figures.placement_diff(BEFORE, Placement([[[0, 1, 2]]], 3), 0, [0])


def test_a_loss_takes_what_is_nowhere_else():
    # expert 0 on ranks 0 and 1 of one node, 1 on rank 1 alone, 2 on rank 2 and its node alone
    placement = Placement([[[0, 0 + 3], [0, 1], [2, 3]]], 4)
    node, gpu = figures.losses(placement, [[10, 20, 30, 40]], [0, 0, 1]).data
    assert list(gpu.y) == pytest.approx([0, 20, 30])
    assert list(node.y) == pytest.approx([30, 30])
    assert [list(one) for one in node.customdata] == [["node 0", "2"], ["node 1", "1"]]
    assert list(node.x) == [0.5, 2]
    subtitle = figures.losses(placement, [[10, 20, 30, 40]], [0, 0, 1]).layout.title.subtitle.text
    assert subtitle.startswith("1 of 3 GPUs take no expert away; the worst, rank 2, takes 1 of 4 (30.0% of the picks)")
    assert len(figures.losses(placement, [[10, 20, 30, 40]], [0, 0, 0]).data) == 1


def test_stragglers_are_named_and_per_step():
    figure = figures.stragglers([1e-3, 3e-3], [2e-3, 0], [0, 1], steps=2)
    assert list(figure.data[0].y) == pytest.approx([0.5, 1.5])
    assert list(figure.data[1].y) == pytest.approx([-1, 0])
    assert "rank 1 (node 1)" in figure.layout.title.subtitle.text


def test_knobs_stand_strongest_first_from_the_base():
    figure = figures.sensitivity(1e-3, KNOBS)
    down, up = figure.data
    assert list(down.y) == ["batch", "NIC"]
    assert list(down.x) == pytest.approx([-0.4, 0.2])
    assert list(up.customdata) == pytest.approx([1.9, 0.9])


def test_the_spread_puts_the_least_bad_worst_first():
    figure = figures.spread(
        {"a": [1.0, 2.0], "b": [1.5, 1.6]}, ["0", "1"], title="Spread", item="step", value_label="step time (ms)"
    )
    assert "the least bad worst step has b: 1.6" in figure.layout.title.subtitle.text
    assert list(figure.data[1].y) == ["b", "a"]
