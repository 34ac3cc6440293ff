"""Published Mixture-of-Experts models as specs, each from its published configuration."""

from __future__ import annotations

from typing import Any, Final

from moesim.base.errors import UnknownName
from moesim.spec import FP8_BLOCK, MXFP4, Attention, ModelSpec


def preset(name: str) -> ModelSpec:
    """Return a published model by name or alias.

    Raises
    ------
    UnknownName
        If there is no such preset.
    """
    known = ALIASES.get(name, name)
    if known not in PRESETS:
        raise UnknownName("model preset", name, [*PRESETS, *ALIASES], "or give the path of its config.json")
    return PRESETS[known]


def _spec(name: str, layers: int, *, dense: int = 0, every: int = 1, **facts: Any) -> ModelSpec:
    """Return a spec whose first ``dense`` layers are dense; of the others, each ``every``-th is an MoE layer."""
    layer_ids = tuple(range(dense + every - 1, layers, every))
    return ModelSpec(name=name, layer_ids=layer_ids, num_hidden_layers=layers, **facts)


_DEEPSEEK_V3_ATTENTION: Final = Attention(
    heads=128, kv_heads=128, head_dim=128, q_rank=1536, kv_rank=512, rope_dim=64, value_dim=128
)
_LLAMA4: Final[dict[str, Any]] = {
    "top_k": 1, "hidden": 5120, "intermediate": 8192, "shared_experts": 1, "shared_intermediate": 8192,
    "vocab": 202048, "attention": Attention(heads=40, kv_heads=8, head_dim=128),
}  # fmt: skip

# Each from the model's published config.json, where no other source is named; fp8 and MXFP4 where the weights are
# published so.
PRESETS: Final[dict[str, ModelSpec]] = {
    spec.name: spec
    for spec in (
        _spec("mixtral-8x7b", 32, experts=8, top_k=2, hidden=4096, intermediate=14336, vocab=32000,
              attention=Attention(heads=32, kv_heads=8, head_dim=128)),
        _spec("mixtral-8x22b", 56, experts=8, top_k=2, hidden=6144, intermediate=16384, vocab=32768,
              attention=Attention(heads=48, kv_heads=8, head_dim=128)),
        _spec("deepseek-v2-lite", 27, dense=1, experts=64, top_k=6, hidden=2048, intermediate=1408, shared_experts=2,
              shared_intermediate=2816, dense_intermediate=10944, vocab=102400,
              attention=Attention(heads=16, kv_heads=16, head_dim=128, kv_rank=512, rope_dim=64, value_dim=128)),
        _spec("deepseek-v2", 60, dense=1, experts=160, top_k=6, hidden=5120, intermediate=1536, shared_experts=2,
              shared_intermediate=3072, groups=8, group_limit=3, dense_intermediate=12288, vocab=102400,
              attention=_DEEPSEEK_V3_ATTENTION),
        _spec("deepseek-v3", 61, dense=3, experts=256, top_k=8, hidden=7168, intermediate=2048, shared_experts=1,
              shared_intermediate=2048, groups=8, group_limit=4, dense_intermediate=18432, vocab=129280,
              attention=_DEEPSEEK_V3_ATTENTION, weight_bytes=1.0, dispatch_bytes=FP8_BLOCK),
        _spec("kimi-k2", 61, dense=1, experts=384, top_k=8, hidden=7168, intermediate=2048, shared_experts=1,
              shared_intermediate=2048, dense_intermediate=18432, vocab=163840,
              attention=Attention(heads=64, kv_heads=64, head_dim=128, q_rank=1536, kv_rank=512, rope_dim=64,
                                  value_dim=128), weight_bytes=1.0, dispatch_bytes=FP8_BLOCK),
        _spec("glm-4.5", 92, dense=3, experts=160, top_k=8, hidden=5120, intermediate=1536, shared_experts=1,
              shared_intermediate=1536, dense_intermediate=12288, vocab=151552,
              attention=Attention(heads=96, kv_heads=8, head_dim=128)),
        _spec("qwen1.5-moe-a2.7b", 24, experts=60, top_k=4, hidden=2048, intermediate=1408, shared_experts=1,
              shared_intermediate=5632, vocab=151936, attention=Attention(heads=16, kv_heads=16, head_dim=128)),
        _spec("qwen2-57b-a14b", 28, experts=64, top_k=8, hidden=3584, intermediate=2560, shared_experts=1,
              shared_intermediate=20480, vocab=151936, attention=Attention(heads=28, kv_heads=4, head_dim=128)),
        _spec("qwen3-30b-a3b", 48, experts=128, top_k=8, hidden=2048, intermediate=768, vocab=151936,
              attention=Attention(heads=32, kv_heads=4, head_dim=128)),
        _spec("qwen3-235b-a22b", 94, experts=128, top_k=8, hidden=4096, intermediate=1536, vocab=151936,
              attention=Attention(heads=64, kv_heads=4, head_dim=128)),
        _spec("gpt-oss-20b", 24, experts=32, top_k=4, hidden=2880, intermediate=2880, vocab=201088,
              attention=Attention(heads=64, kv_heads=8, head_dim=64), weight_bytes=MXFP4),
        _spec("gpt-oss-120b", 36, experts=128, top_k=4, hidden=2880, intermediate=2880, vocab=201088,
              attention=Attention(heads=64, kv_heads=8, head_dim=64), weight_bytes=MXFP4),
        _spec("olmoe-1b-7b", 16, experts=64, top_k=8, hidden=2048, intermediate=1024, vocab=50304,
              attention=Attention(heads=16, kv_heads=16, head_dim=128)),
        _spec("llama-4-scout", 48, experts=16, **_LLAMA4),
        _spec("llama-4-maverick", 48, every=2, experts=128, dense_intermediate=16384, **_LLAMA4),
        # Fedus et al., Switch Transformers, table 9: Switch-C, 15 encoder and 15 decoder layers
        _spec("switch-c-2048", 30, experts=2048, top_k=1, hidden=2080, intermediate=6144, gated=False, vocab=32128,
              tied_embeddings=True, attention=Attention(heads=32, kv_heads=32, head_dim=64)),
        # Riquelme et al., Scaling Vision with Sparse Mixture of Experts: V-MoE-H/14, Every-2
        _spec("v-moe-h14", 32, every=2, experts=32, top_k=2, hidden=1280, intermediate=5120, gated=False,
              dense_intermediate=5120, attention=Attention(heads=16, kv_heads=16, head_dim=80)),
        _spec("rumoured-gpt-4", 120, experts=16, top_k=2, hidden=10752, intermediate=43008, gated=False, vocab=100256,
              attention=Attention(heads=84, kv_heads=84, head_dim=128)),
    )
}  # fmt: skip
"""Published models by name."""

ALIASES: Final = {
    "deepseek-r1": "deepseek-v3",
    "switch-1.6t": "switch-c-2048",
}
"""Other names: models of the same shape, and usual names."""

NOTES: Final = {
    "switch-c-2048": "an encoder and a decoder: layers 0-14 are the encoder's, 15-29 the decoder's, and a token passes "
    "only the layers of its side; the cross-attention of the decoder (below 0.1 % of the weights) is left out",
    "v-moe-h14": "a vision transformer: tokens are image patches, there is no vocabulary; its patch embedding and "
    "classifier (below 1 % of the weights) are left out",
    "llama-4-scout": "the text model; the vision encoder (0.9 B weights) is left out",
    "llama-4-maverick": "the text model; the vision encoder (0.9 B weights) is left out",
    "glm-4.5": "without the layer that predicts a second token",
    "deepseek-v3": "without the layer that predicts a second token",
    "rumoured-gpt-4": "never published: 16 experts of about 111 B weights in 120 layers, 2 a token, 1.8 T in all, "
    "280 B active, as reported by the press in 2023; width and heads are chosen here to give these sums",
}
"""What a spec cannot say of a preset."""
