"""Experts: SwiGLU feed-forward parts, applied to the tokens that picked them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moesim.moe.config import MoeConfig


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return `(silu(x G) * (x U)) D`; `gate_up` [hidden, 2 intermediate] holds G beside U, `down` is D."""
    gate, up = (x @ gate_up).chunk(2, dim=-1)
    return (nn.functional.silu(gate) * up) @ down


def grouped_swiglu(x: Tensor, counts: list[int], gate_up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU of each expert on its own rows.

    Parameters
    ----------
    x
        Rows sorted by expert `[picks, hidden]`.
    counts
        Rows of each expert, summing to `picks`.
    gate_up
        `[experts, hidden, 2 intermediate]`.
    down
        `[experts, intermediate, hidden]`.

    Returns
    -------
    `[picks, hidden]`, rows in the order of `x`.
    """
    # A product per expert beats one padded batched product: loads are uneven, so padding multiplies the work.
    # unbind, unlike indexing, gives autograd one gradient for the stack instead of one full-sized one an expert.
    rows = zip(torch.split(x, counts), gate_up.unbind(), down.unbind(), counts, strict=True)
    return torch.cat([swiglu(part, into, out) for part, into, out, count in rows if count])


class Experts(nn.Module):
    """The routed and shared experts of one layer."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        shape = config.experts, config.hidden, config.intermediate
        self.gate_up = nn.Parameter(torch.empty(shape[0], shape[1], 2 * shape[2]))
        self.down = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))
        self.shared = FeedForward(config.hidden, config.shared_experts * config.intermediate)

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of the shared expert and the weighted picked experts `[tokens, hidden]`."""
        top_k = experts.shape[-1]
        chosen = experts.flatten()
        order = torch.argsort(chosen, stable=True)
        counts = torch.bincount(chosen, minlength=self.down.shape[0]).tolist()
        token = order // top_k
        out = grouped_swiglu(x[token], counts, self.gate_up, self.down)
        out = out * weights.flatten()[order].unsqueeze(-1).to(out.dtype)
        result: Tensor = self.shared(x)
        return result.index_add(0, token, out.to(result.dtype))


class FeedForward(nn.Module):
    """One SwiGLU part that every token uses: a shared expert, or the dense model's feed-forward layer."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(hidden, 2 * intermediate))
        self.down = nn.Parameter(torch.empty(intermediate, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [..., hidden] for inputs of the same shape."""
        return swiglu(x, self.gate_up, self.down)
