"""The bundled model: a small decoder-only transformer with rotary positions and a mixture of experts in each layer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moesim.moe.cache import Past
from moesim.moe.config import MoeConfig
from moesim.moe.experts import Experts, FeedForward
from moesim.moe.parallel import ALONE, Group
from moesim.moe.routers import make_router
from moesim.moe.routers.base import Context, Router
from moesim.moe.spec import spec_of
from moesim.spec import ModelSpec

ROTARY_BASE = 10_000.0


class Output(NamedTuple):
    """`logits` `[batch, length, vocabulary]`, and auxiliary losses by name, each the mean over MoE layers (scalars)."""

    logits: Tensor
    losses: dict[str, Tensor]


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions."""

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.width = layer, config.heads, config.hidden // config.heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None) -> Tensor:
        """Mix hidden states [batch, length, hidden] with earlier positions of their sequence."""
        batch, length, hidden = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if past is None:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            key, value = past.extend(self.layer, key, value)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=past.mask)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return result


class Block(nn.Module):
    """One decoder layer: attention, then the experts (or one dense part), each behind an RMS norm."""

    def __init__(self, config: MoeConfig, layer: int, group: Group = ALONE) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config, layer)
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.router = make_router(config, layer) if config.experts else None
        self.mlp = Experts(config, group) if config.experts else FeedForward(config.hidden, config.intermediate)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the hidden states after this layer and its auxiliary losses."""
        x = x + self.attention(self.attention_norm(x), cos, sin, context.past)
        normed = self.norm(x)
        if self.router is None:
            return x + self.mlp(normed), {}
        experts, weights, losses = self.router(normed, context)
        out = self.mlp(normed.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1))
        return x + out.view_as(x), losses


class MoeModel(nn.Module):
    """The language model. `experts=0` in its configuration gives the dense model that it is compared with."""

    def __init__(self, config: MoeConfig, group: Group = ALONE) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, layer, group) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        width = config.hidden // config.heads
        speed = ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angle = torch.arange(config.context, dtype=torch.float32)[:, None] * speed
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        for router in self.routers():
            router.group = group

    def forward(
        self, tokens: Tensor, past: Past | None = None, *, draw: tuple[int, ...] | None = None,
        rows: tuple[int, ...] | None = None,
    ) -> Output:  # fmt: skip
        """Predict the next token at every position.

        Parameters
        ----------
        tokens
            Int64 `[batch, length]`.
        past
            Where the sequences go on and their cached keys and values; None for whole sequences.
        draw, rows
            What seeds the noise of routers that have any, and the numbers of the sequences in the whole batch.
        """
        if past is None:
            cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        else:
            cos, sin = self.cos[past.positions][:, None], self.sin[past.positions][:, None]
        x = self.embedding(tokens)
        context = Context(tokens, past, draw, rows)
        losses: dict[str, Tensor] = {}
        for block in self.blocks:
            x, extra = block(x, cos, sin, context)
            for name, loss in extra.items():
                losses[name] = losses.get(name, 0.0) + loss / len(self.blocks)
        return Output(nn.functional.linear(self.norm(x), self.embedding.weight), losses)

    @property
    def spec(self) -> ModelSpec:
        """What the model is to the rest of moesim; InputError for the dense model."""
        return spec_of(self.config)

    def routers(self) -> list[Router]:
        """Return the routers of the MoE layers in order; empty for the dense model."""
        return [block.router for block in self.blocks if isinstance(block, Block) and block.router is not None]

    def expert_parameters(self) -> set[str]:
        """Return the names of the parameters of which each rank holds a share of the experts."""
        return {
            f"{name}.{part}"
            for name, m in self.named_modules()
            if isinstance(m, Experts)
            for part in ("gate_up", "down")
        }

    def initialise(self, seed: int) -> MoeModel:
        """Draw all weights from normal distributions, seeded; outputs into the residual stream are scaled down.

        Each rank of a group draws the weights of all experts and keeps its own, so that the number of ranks changes
        nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        depth = 1 / math.sqrt(2 * self.config.layers)
        shared_out = self.expert_parameters()
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() < 2:
                    weight.fill_(1.0)
                    continue
                if not weight.numel():
                    continue  # no shared expert
                # linear layers hold [out, in], experts [..., in, out]
                fan_in = weight.shape[-1] if name.endswith("weight") else weight.shape[-2]
                spread = 0.02 if "embedding" in name else 1 / math.sqrt(fan_in)
                spread *= depth if name.endswith(("out.weight", "down")) else 1.0
                shape = (self.config.experts, *weight.shape[1:]) if name in shared_out else weight.shape
                drawn = torch.randn(shape, generator=generator)
                weight.copy_((drawn[self.group.share(len(drawn))] if name in shared_out else drawn) * spread)
        return self


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
