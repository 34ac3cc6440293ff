"""Experts: SwiGLU feed-forward parts, applied to the tokens that picked them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moesim.base.errors import InputError
from moesim.moe.config import MoeConfig
from moesim.moe.kernels import usable
from moesim.moe.parallel import ALONE, Group


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
    if not any(counts):
        # nobody came: an empty product keeps the graph whole, so that the backward pass runs on every rank
        return swiglu(x, gate_up[0], down[0])
    # A product per expert beats one padded batched product: loads are uneven, so padding multiplies the work.
    # unbind, unlike indexing, gives autograd one gradient for the stack instead of one full-sized one an expert.
    rows = zip(torch.split(x, counts), gate_up.unbind(), down.unbind(), counts, strict=True)
    return torch.cat([swiglu(part, into, out) for part, into, out, count in rows if count])


class Experts(nn.Module):
    """The routed and shared experts of one layer; of several ranks, each holds its share of the routed ones.

    On a GPU Triton computes the routed ones (`moesim.moe.kernels`), elsewhere PyTorch.
    """

    def __init__(self, config: MoeConfig, group: Group = ALONE) -> None:
        super().__init__()
        if config.experts % group.size:
            raise InputError(f"{group.size} processes do not divide {config.experts} experts")
        self.group, self.experts = group, config.experts
        here = config.experts // group.size
        self.gate_up = nn.Parameter(torch.empty(here, config.hidden, 2 * config.intermediate))
        self.down = nn.Parameter(torch.empty(here, config.intermediate, config.hidden))
        self.shared = FeedForward(config.hidden, config.shared_experts * config.intermediate)

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of the shared expert and the weighted picked experts `[tokens, hidden]`.

        Parameters
        ----------
        x
            `[tokens, hidden]`.
        experts, weights
            Picks and what their outputs are multiplied by `[tokens, K]`; -1 picks nothing.
        """
        if self.group.size == 1 and usable(x):
            from moesim.moe.kernels.mlp import experts as by_kernels

            beside: Tensor = self.shared(x)
            return beside + by_kernels(x, experts, weights, self.gate_up, self.down)
        chosen = experts.flatten()
        order = torch.argsort(chosen, stable=True)
        # picks of nobody come first
        order = order[int((chosen < 0).sum()) :]
        counts = torch.bincount(chosen[order], minlength=self.experts)
        token = order // experts.shape[-1]
        out = self.routed(x[token], counts)
        out = out * weights.flatten()[order].unsqueeze(-1).to(out.dtype)
        result: Tensor = self.shared(x)
        return result.index_add(0, token, out.to(result.dtype))

    def routed(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Return what the experts make of rows sorted by expert `[picks, hidden]`; `counts` rows of each [experts]."""
        if self.group.size == 1:
            return grouped_swiglu(rows, counts.tolist(), self.gate_up, self.down)
        # dispatch: rows are sorted by expert, hence by the rank that holds it
        arriving = self.group.counts(counts)
        if torch.is_autocast_enabled(rows.device.type):
            # the products would round the rows anyway: do it before they travel
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        send = counts.view(self.group.size, -1).sum(1).tolist()
        receive = arriving.sum(1).tolist()
        rows = self.group.exchange(rows, send, receive)
        # rows came by rank, then expert; the product wants all rows of an expert together, ranks in order as in one
        # batch
        owner = torch.arange(arriving.shape[1], device=rows.device).repeat(self.group.size)
        owner = owner.repeat_interleave(arriving.flatten())
        if usable(rows):
            from moesim.moe.kernels.mlp import experts as by_kernels

            out = by_kernels(rows, owner[:, None], torch.ones_like(owner[:, None], dtype=torch.float32),
                             self.gate_up, self.down)  # fmt: skip
            return self.group.exchange(out, receive, send)
        order = torch.argsort(owner, stable=True)
        out = grouped_swiglu(rows[order], arriving.sum(0).tolist(), self.gate_up, self.down)
        # combine: back into the order of arrival, and home
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return self.group.exchange(out[back], receive, send)


class FeedForward(nn.Module):
    """One SwiGLU part that every token uses: a shared expert, or the dense model's feed-forward layer."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(hidden, 2 * intermediate))
        self.down = nn.Parameter(torch.empty(intermediate, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [..., hidden] for inputs of the same shape."""
        return swiglu(x, self.gate_up, self.down)
