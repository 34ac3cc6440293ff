"""The bundled model: a small decoder-only transformer with rotary positions and a mixture of experts in each layer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moesim.moe.config import MoeConfig, spec_of
from moesim.moe.experts import Experts, FeedForward
from moesim.moe.router import SigmoidBiasRouter, make_router
from moesim.spec import ModelSpec

ROTARY_BASE = 10_000.0


class Cache:
    """Keys and values of running sequences `[layers, slots, heads, context, width]`; a slot holds one sequence."""

    def __init__(self, config: MoeConfig, slots: int, device: torch.device | str = "cpu") -> None:
        shape = (config.layers, slots, config.heads, config.context, config.hidden // config.heads)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)


class Output(NamedTuple):
    """`logits` `[batch, length, vocabulary]` and the mean balance loss over MoE layers (a scalar)."""

    logits: Tensor
    balance: Tensor


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


class Past:
    """A view of a `Cache` for one forward pass: sequences in `slots`, each continuing at its `start` position."""

    def __init__(self, cache: Cache, slots: Tensor, start: Tensor, length: int) -> None:
        self.cache, self.slots = cache, slots
        self.positions = start[:, None] + torch.arange(length, device=start.device)
        self.reach = int(self.positions.max()) + 1
        # a token sees every position up to its own, hence nothing that an earlier tenant of the slot left behind
        seen = torch.arange(self.reach, device=start.device)
        self.mask = (seen <= self.positions[..., None])[:, None]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values `[batch, heads, length, width]` and return all up to `reach`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        where = (self.slots[:, None], slice(None), self.positions)
        keys[where] = key.transpose(1, 2).to(keys.dtype)
        values[where] = value.transpose(1, 2).to(values.dtype)
        return keys[self.slots, :, : self.reach].to(key.dtype), values[self.slots, :, : self.reach].to(value.dtype)


class Block(nn.Module):
    """One decoder layer: attention, then the experts (or one dense part), each behind an RMS norm."""

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config, layer)
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.router = make_router(config, layer) if config.experts else None
        self.mlp = Experts(config) if config.experts else FeedForward(config.hidden, config.intermediate)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None) -> tuple[Tensor, Tensor]:
        """Return the hidden states after this layer and its balance loss."""
        x = x + self.attention(self.attention_norm(x), cos, sin, past)
        normed = self.norm(x)
        if self.router is None:
            return x + self.mlp(normed), x.new_zeros(())
        experts, weights, balance = self.router(normed)
        out = self.mlp(normed.flatten(0, 1), experts.flatten(0, 1), weights.flatten(0, 1))
        return x + out.view_as(x), balance


class MoeModel(nn.Module):
    """The language model. `experts=0` in its configuration gives the dense model that it is compared with."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        width = config.hidden // config.heads
        speed = ROTARY_BASE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angle = torch.arange(config.context, dtype=torch.float32)[:, None] * speed
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, tokens: Tensor, past: Past | None = None) -> Output:
        """Predict the next token at every position.

        Parameters
        ----------
        tokens
            Int64 `[batch, length]`.
        past
            Where the sequences go on and their cached keys and values; None for whole sequences.
        """
        if past is None:
            cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        else:
            cos, sin = self.cos[past.positions][:, None], self.sin[past.positions][:, None]
        x = self.embedding(tokens)
        balance = x.new_zeros(())
        for block in self.blocks:
            x, extra = block(x, cos, sin, past)
            balance = balance + extra / len(self.blocks)
        return Output(nn.functional.linear(self.norm(x), self.embedding.weight), balance)

    @property
    def spec(self) -> ModelSpec:
        """What the model is to the rest of moesim; InputError for the dense model."""
        return spec_of(self.config)

    def routers(self) -> list[SigmoidBiasRouter]:
        """Return the routers of the MoE layers in order; empty for the dense model."""
        return [block.router for block in self.blocks if isinstance(block, Block) and block.router is not None]

    def initialise(self, seed: int) -> MoeModel:
        """Draw all weights from normal distributions, seeded; outputs into the residual stream are scaled down."""
        generator = torch.Generator().manual_seed(seed)
        depth = 1 / math.sqrt(2 * self.config.layers)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() < 2:
                    weight.fill_(1.0)
                    continue
                # linear layers hold [out, in], experts [..., in, out]
                fan_in = weight.shape[-1] if name.endswith("weight") else weight.shape[-2]
                spread = 0.02 if "embedding" in name else 1 / math.sqrt(fan_in)
                spread *= depth if name.endswith(("out.weight", "down")) else 1.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        return self


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
