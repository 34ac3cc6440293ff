"""What capturing costs on the bundled model: less than 5 % of a forward pass, so that it can be left on."""

from __future__ import annotations

import time

import numpy as np
import pytest

import moesim

torch = pytest.importorskip("torch", reason="capture needs torch: pip install 'moesim[capture]'")


@pytest.mark.bench
@pytest.mark.parametrize(("rows", "length"), [(4, 512), (64, 8)])
def test_overhead_of_the_hook_on_the_bundled_model(rows, length):
    from moesim.moe import load_model

    torch.set_num_threads(1)
    net = load_model().model
    tokens = torch.randint(0, net.config.vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))

    def seconds() -> float:
        # of this process: what else the machine does must not count
        start = time.process_time()
        with torch.inference_mode():
            net(tokens)
        return time.process_time() - start

    off, on = [], []
    for _ in range(25):
        off.append(seconds())
        with moesim.capture(net) as recorder:
            forward_s = seconds()
            start = time.process_time()
            recorder.take()
            on.append(forward_s + time.process_time() - start)
    share = np.median(on) / np.median(off) - 1
    print(f"\n{rows} x {length} tokens: forward {np.median(off) * 1e3:.1f} ms, with capture {share:+.1%}")
    assert share < 0.05
