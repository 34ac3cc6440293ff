"""The context manager on any torch model: transformers, bundled, and others; for training and custom loops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import moesim
from moesim.base.errors import InputError
from moesim.spec import ModelSpec
from moesim.trace import Trace, read_any

torch = pytest.importorskip("torch", reason="capture needs torch: pip install 'moesim[capture]'")
nn = torch.nn

SPEC = ModelSpec("toy", (0, 1), 2, experts=5, top_k=2, hidden=4, intermediate=4)


class Experts(nn.Module):
    """Called as those of transformers are."""

    num_experts = 5

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


class Layer(nn.Module):
    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.experts, self.gate = shift, Experts(), nn.Linear(4, 4)

    def forward(self, hidden):
        flat = self.gate(hidden).flatten(0, -2)
        index = torch.arange(len(flat))[:, None] + self.shift + torch.arange(2)
        weights = torch.full(index.shape, 0.5)
        self.experts(flat, top_k_index=index % 5, top_k_weights=weights)
        return hidden + self.gate(hidden)


class Toy(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shift) for shift in range(layers))
        self.embed = nn.Embedding(9, 4)

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_a_custom_loop_gives_a_trace_with_steps_sequences_and_positions():
    net = Toy()
    with moesim.capture(net, spec=SPEC, origin={"job": "mine"}) as recorder:
        net(torch.zeros(2, 3, dtype=torch.long))
        net(torch.zeros(1, 2, dtype=torch.long))
        trace = recorder.trace(domains=("code",))
    assert trace.routes[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 0, 1]
    assert trace.routes[:, 1, 1].tolist() == [2, 3, 4, 0, 1, 2, 2, 3]
    assert trace.step.tolist() == [0] * 6 + [1] * 2
    assert trace.request.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert trace.position.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert set(trace.phase.tolist()) == {2}
    assert trace.domains == ("code",)
    assert trace.origin["job"] == "mine"
    assert trace.origin["synthetic"] is False


def test_the_numbers_go_on_after_taking():
    net = Toy()
    with moesim.capture(net, spec=SPEC) as recorder:
        ids = torch.zeros(2, 1, dtype=torch.long)
        net(ids)
        recorder.trace()
        net(ids)
        later = recorder.trace()
    assert later.step.tolist() == [1, 1]
    assert later.request.tolist() == [2, 3]


def test_a_model_without_configuration_is_described_by_what_was_seen():
    net = Toy()
    with moesim.capture(net) as recorder:
        net(torch.zeros(1, 3, dtype=torch.long))
        trace = recorder.trace()
    assert (trace.spec.name, trace.spec.layer_ids, trace.spec.experts, trace.spec.top_k) == ("Toy", (0, 1), 5, 2)


def test_one_pass_in_so_many_is_recorded():
    net = Toy()
    with moesim.capture(net, spec=SPEC, every=3) as recorder:
        for _ in range(7):
            net(torch.zeros(1, 2, dtype=torch.long))
        trace = recorder.trace()
    assert trace.step_ids.tolist() == [0, 3, 6]
    assert trace.origin["every"] == 3
    with pytest.raises(InputError, match="every must be at least 1"), moesim.capture(net, every=0):
        pass


def test_recomputation_of_activation_checkpoints_is_not_recorded_twice():
    from torch.utils.checkpoint import checkpoint

    net = Toy()
    hidden = net.embed(torch.zeros(1, 3, dtype=torch.long))
    with moesim.capture(net, spec=SPEC) as recorder:
        for layer in net.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False)
        hidden.sum().backward()
        routes, _ = recorder.take()
    assert len(routes) == 3
    assert net.layers[0].gate.weight.grad is not None


def test_gradients_are_those_without_the_recorder():
    ids = torch.tensor([[1, 2, 3]])
    torch.manual_seed(0)
    net = Toy()
    net(ids).square().sum().backward()
    plain = [weight.grad.clone() for weight in net.parameters()]
    net.zero_grad()
    with moesim.capture(net):
        net(ids).square().sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(plain, net.parameters(), strict=True))


def test_every_hook_is_gone_after_the_block():
    net = Toy()
    with pytest.raises(ZeroDivisionError), moesim.capture(net):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_other_models_are_watched_by_a_rule():
    class Gate(nn.Module):
        def forward(self, hidden):
            return hidden.topk(2).indices, hidden.topk(2).values

    net = nn.Sequential(Gate())
    hidden = torch.rand(6, 5)
    with pytest.raises(InputError, match="say with picks= what to watch"), moesim.capture(net):
        pass
    rule = lambda name, module: (lambda args, kwargs, output: output) if isinstance(module, Gate) else None  # noqa: E731
    spec = ModelSpec("gate", (0,), 1, experts=5, top_k=2, hidden=4, intermediate=4)
    with moesim.capture(net, picks=rule, spec=spec) as recorder:
        net(hidden)
        trace = recorder.trace()
    assert trace.routes[:, 0].tolist() == hidden.topk(2).indices.tolist()


@pytest.mark.parametrize(
    "read",
    [
        lambda out: (out.topk(2).indices[None], out.topk(2).values[None]),
        lambda out: (out.argmax(-1), None),
        lambda out: (out.topk(2).values, None),
        lambda out: (out.topk(2).indices, out.topk(3).values),
        lambda out: out.topk(2).indices,
        lambda out: None,
    ],
    ids=["batched", "no dimension of picks", "floats", "other weights", "no pair", "nothing"],
)
def test_a_rule_that_reads_something_else_is_told_so(read):
    net = nn.Sequential(nn.Linear(4, 5))
    rule = lambda name, module: (lambda args, kwargs, output: read(output)) if name == "0" else None  # noqa: E731
    with (
        pytest.raises(InputError, match=r"picks= must read \(experts, weights\) of 0, .* found"),
        moesim.capture(net, picks=rule),
    ):
        net(torch.rand(6, 4))


def test_a_file_is_written_as_the_block_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("moesim.capture.recorder.FLUSH_TOKENS", 8)
    net, path = Toy(), tmp_path / "run.parquet"
    with moesim.capture(net, path, spec=SPEC):
        for _ in range(5):
            net(torch.zeros(2, 2, dtype=torch.long))
        waiting = read_any(f"{path}.parts")
        assert waiting.tokens == 16
        assert waiting.origin["interrupted"] is True
    trace = Trace.read(path)
    assert trace.step.tolist() == np.repeat(range(5), 4).tolist()
    assert not (tmp_path / "run.parquet.parts").exists()
    assert "interrupted" not in trace.origin


def test_an_exception_keeps_whole_passes(tmp_path):
    net, path = Toy(), tmp_path / "run.parquet"

    def fail(*_):
        if armed:
            raise RuntimeError("out of memory")

    armed = False
    net.layers[1].register_forward_pre_hook(fail)

    def train():
        nonlocal armed
        with moesim.capture(net, path, spec=SPEC):
            net(torch.zeros(2, 2, dtype=torch.long))
            armed = True
            net(torch.zeros(2, 2, dtype=torch.long))

    with pytest.raises(RuntimeError, match="out of memory"):
        train()
    trace = Trace.read(path)
    assert trace.tokens == 4
    assert trace.origin["interrupted"] is True


def test_nothing_captured_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="nothing was captured"), moesim.capture(Toy(), tmp_path / "a.parquet"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_run_leaves_what_it_captured(tmp_path):
    script = f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        import torch, moesim, moesim.capture.recorder as r
        from capture.test_recorder import SPEC, Toy
        r.FLUSH_TOKENS = 4
        net = Toy()
        with moesim.capture(net, "run.parquet", spec=SPEC):
            for _ in range(5):
                net(torch.zeros(2, 2, dtype=torch.long))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run.parquet").exists()
    kept = read_any(tmp_path / "run.parquet.parts")
    assert kept.tokens == 16
    # the folder is not mixed with a later capture
    with (
        pytest.raises(InputError, match="holds what another capture left"),
        moesim.capture(Toy(), tmp_path / "run.parquet"),
    ):
        pass


def test_the_bundled_model_tells_what_it_is():
    pytest.importorskip("tokenizers", reason="the bundled model needs its extra: pip install 'moesim[gpu]'")
    from moesim.moe import load_model

    net = load_model().model
    with torch.inference_mode(), moesim.capture(net) as recorder:
        net(torch.zeros(1, 4, dtype=torch.long))
        trace = recorder.trace()
    assert trace.spec.name == "moesim-bundled-moe"
    assert trace.spec.experts == net.config.experts
