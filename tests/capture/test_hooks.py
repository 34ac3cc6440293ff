from __future__ import annotations

import numpy as np
import pytest

from moesim.base.errors import InputError
from moesim.capture import capture

torch = pytest.importorskip("torch", reason="capture needs the extra gpu: pip install 'moesim[gpu]'")
nn = torch.nn


class Router(nn.Module):
    """The smallest module that takes part in the protocol: token t picks experts t and t + 1, modulo 5."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.recorder = layer, None

    def forward(self, tokens):
        experts = torch.stack([tokens + self.layer, tokens + self.layer + 1], dim=1) % 5
        weights = torch.full(experts.shape, 0.5, dtype=torch.bfloat16)
        if self.recorder is not None:
            self.recorder.record(self.layer, experts, weights)
        return tokens


def model(*layers: int) -> nn.Sequential:
    return nn.Sequential(*(Router(layer) for layer in layers))


def test_the_hook_records_what_each_router_decided_token_by_token():
    net = model(0, 1, 2)
    with capture(net) as recorder:
        net(torch.arange(4))
        net(torch.arange(4, 6))
        routes, weights = recorder.take()
    assert routes.dtype == np.int16
    assert weights.dtype == np.float16
    expected = [[[(t + layer) % 5, (t + layer + 1) % 5] for layer in range(3)] for t in range(6)]
    assert routes.tolist() == expected
    assert (weights == 0.5).all()


def test_taking_forgets_what_was_taken():
    net = model(0)
    with capture(net, keep_weights=False) as recorder:
        net(torch.arange(3))
        recorder.take()
        net(torch.arange(2))
        routes, weights = recorder.take()
    assert len(routes) == 2
    assert weights is None


def test_nothing_is_attached_after_the_block_even_when_it_fails():
    net = model(0, 1)
    with pytest.raises(ZeroDivisionError), capture(net):
        raise ZeroDivisionError
    assert all(router.recorder is None for router in net)


def test_a_layer_that_did_not_report_is_found():
    net = model(0, 1)
    with capture(net) as recorder:
        net[0](torch.arange(3))
        with pytest.raises(InputError, match=r"recorded \[3, 0\] tokens"):
            recorder.take()


def test_taking_before_any_forward_pass_is_an_error():
    with capture(model(0)) as recorder, pytest.raises(InputError, match="must record every token once"):
        recorder.take()


def test_a_model_without_routers_is_refused():
    with pytest.raises(InputError, match="Linear has no routers"), capture(nn.Linear(2, 2)):
        pass


def test_layers_must_be_numbered_without_gaps():
    with pytest.raises(InputError, match=r"must be 0\.\.1"), capture(model(0, 2)):
        pass


def test_two_captures_of_one_model_at_a_time_are_refused():
    net = model(0)
    with capture(net), pytest.raises(InputError, match="captured already"), capture(net):
        pass
