"""The drift that recovery answers: as much of other domains as was asked for, and nothing of what ran before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.cli.migrate import print_recovery
from moesim.cluster import Cluster
from moesim.spec import ModelSpec
from moesim.study.recovery import drifted, recover
from moesim.trace import Trace
from moesim.trace.synthetic import lognormal

SPEC = ModelSpec(
    name="little", layer_ids=(0,), num_hidden_layers=1, experts=8, top_k=2, hidden=64, intermediate=32
)  # fmt: skip


def traffic(requests: int, of_new: float) -> Trace:
    """Return requests of 10 tokens, a part of them of the second of two domains."""
    drawn = lognormal(SPEC, requests * 10, seed=1)
    request = np.repeat(np.arange(requests), 10)
    domain = (request < of_new * requests).astype(np.int16)
    place = np.tile(np.arange(10), requests)
    return dataclasses.replace(
        drawn, request=request, position=place, domain=domain, domains=("old", "new"), step=None, source=None
    )


@pytest.mark.parametrize("of_new", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 1.0])
def test_traffic_after_a_drift_is_of_other_domains_as_far_as_asked(share: float, of_new: float) -> None:
    before, after = drifted(traffic(2000, of_new), share, seed=3)
    assert not before.domain.any()
    assert after.domain.mean() == pytest.approx(share, abs=0.02)
    assert not np.intersect1d(before.request, after.request).size


def test_too_few_requests_to_drift() -> None:
    with pytest.raises(InputError, match="too few"):
        drifted(traffic(2, 0.5), 0.5)


def test_where_a_re_plan_gains_nothing_no_part_of_it_is_recovered(capsys: pytest.CaptureFixture[str]) -> None:
    # the two domains are of one and the same traffic, so that the first plan is as good as any
    found = recover(
        traffic(64, 0.5), Cluster.preset("h100-1x8").restrict(range(4)), slots_per_rank=2, budgets=(1,),
        tokens_per_rank=8, seed=4,
    )  # fmt: skip
    stay, *plans = found.rows
    assert stay.step_s <= plans[-1].step_s
    assert [row.recovered for row in found.rows] == [None, None, None]
    assert {note.split(" ")[0] for note in found.facts["notes"]} >= {"before", "fitted", "judged"}
    print_recovery(found)
    assert "the re-plan gains nothing on held-out traffic" in capsys.readouterr().out
