"""Tiny random models of many families of transformers, and their routers' decisions seen in another way."""

from __future__ import annotations

import warnings

import pytest

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'moesim[capture]'")
torch = pytest.importorskip("torch", reason="capture needs torch: pip install 'moesim[capture]'")

VOCABULARY = 97
_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
_GROUPED = {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 16}
_EIGHT = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}

# model_type: what differs from the common facts, decoder layers with experts, experts, picks
FAMILIES = {
    "mixtral": (_LOCAL, (0, 1, 2), 8, 2),
    "qwen2_moe": (_EIGHT | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 2}, (1,), 8, 2),
    "qwen3_moe": (_EIGHT | {"mlp_only_layers": [0]}, (1, 2), 8, 2),
    "qwen3_next": (
        _EIGHT | {"shared_expert_intermediate_size": 16, "layer_types": ["full_attention"] * 3}, (0, 1, 2), 8, 2,
    ),
    "deepseek_v2": (
        _MLA | _GROUPED | {
            "n_routed_experts": 16, "num_experts_per_tok": 4, "topk_method": "group_limited_greedy",
            "n_shared_experts": 1,
        }, (1, 2), 16, 4,
    ),
    "deepseek_v3": (
        _MLA | _GROUPED | {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 1}, (1, 2), 16, 4,
    ),
    "olmoe": ({"num_experts": 8, "num_experts_per_tok": 3}, (0, 1, 2), 8, 3),
    "flex_olmo": ({"num_experts": 6, "num_experts_per_tok": 3}, (0, 1, 2), 6, 3),
    "gpt_oss": (_LOCAL, (0, 1, 2), 8, 2),
    "glm4_moe": (
        _GROUPED | {"n_routed_experts": 16, "num_experts_per_tok": 3, "n_shared_experts": 1}, (1, 2), 16, 3,
    ),
    "llama4_text": (
        _LOCAL | {"interleave_moe_layer_step": 2, "intermediate_size_mlp": 32, "attn_temperature_tuning": False},
        (1,), 8, 2,
    ),
    "granitemoe": (_LOCAL, (0, 1, 2), 8, 2),
    "phimoe": (_LOCAL, (0, 1, 2), 8, 2),
    "dbrx": (
        {
            "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 32},
        }, (0, 1, 2), 8, 2,
    ),
    "jetmoe": (_LOCAL | {"kv_channels": 8}, (0, 1, 2), 8, 2),
    "jamba": (
        _EIGHT | {
            "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
            "use_mamba_kernels": False, "mamba_d_state": 4,
        }, (1,), 8, 2,
    ),
    "ernie4_5_moe": (
        {
            "moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1, "moe_num_shared_experts": 1,
            "moe_intermediate_size": 16,
        }, (1, 2), 8, 2,
    ),
    "dots1": (_GROUPED | {"n_routed_experts": 16, "num_experts_per_tok": 3, "n_shared_experts": 1}, (1, 2), 16, 3),
    "hunyuan_v1_moe": ({"num_experts": 8, "moe_topk": 2}, (0, 1, 2), 8, 2),
    "minimax": (_LOCAL, (0, 1, 2), 8, 2),
    "minimax_m2": (_LOCAL, (0, 1, 2), 8, 2),
    "lfm2_moe": (_EIGHT | {"num_dense_layers": 1, "layer_types": ["full_attention"] * 3}, (1, 2), 8, 2),
    "longcat_flash": (
        _MLA | {
            "n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 4, "num_layers": 2, "expert_ffn_hidden_size": 16,
            "ffn_hidden_size": 48, "num_hidden_layers": 4,
        }, (0, 1), 8, 4,
    ),
    "exaone_moe": (
        _EIGHT | {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_shared_experts": 1}, (1, 2), 8, 2,
    ),
    "solar_open": (_GROUPED | {"n_routed_experts": 16, "num_experts_per_tok": 3}, (0, 1, 2), 16, 3),
    "afmoe": (_EIGHT | {"num_dense_layers": 1, "num_shared_experts": 1, "n_group": 1, "topk_group": 1}, (1, 2), 8, 2),
    "deepseek_v4": ({"n_routed_experts": 8, "num_experts_per_tok": 2}, None, 8, 2),
    "cohere2_moe": (_EIGHT, None, 8, 2),
}  # fmt: skip


def tiny(family: str, seed: int = 0):
    """Return a random model whose routers do not agree with a plain top-k where they can differ from it."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    facts = FAMILIES[family][0]
    common = {
        "vocab_size": VOCABULARY, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    if family != "dbrx":
        common |= {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8,
        }  # fmt: skip
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**(common | facts))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "correction_bias" in name or "expert_bias" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif "tid2eid" in name:
                # tables of experts by token: real ones come from the checkpoint
                draws = torch.rand(buffer.shape[0], model.config.n_routed_experts, generator=generator)
                buffer.copy_(draws.argsort(1)[:, : buffer.shape[1]])
    return model


class Eavesdropper:
    """What each router returns, read by the rule of its family and not through the recorder."""

    def __init__(self, family: str, model) -> None:
        self.said: dict[int, list] = {}
        self.logits: dict[int, list] = {}
        self.handles = []
        for name, module in model.named_modules():
            path = name.split(".")
            number = next((int(part) for part in path if part.isdigit()), None)
            if number is None or "attn" in name or "attention" in name or path[-1] not in ("gate", "router"):
                continue
            beside = f"{name.rpartition('.')[0]}.experts"
            if family != "jetmoe" and not any(child.startswith(beside) for child, _ in model.named_modules()):
                continue
            self.handles.append(module.register_forward_hook(self._hook(family, number, model)))

    def _hook(self, family, layer, model):
        def hook(module, _, output):
            experts, logits = decisions(family, module, output, model)
            self.said.setdefault(layer, []).append(experts)
            self.logits.setdefault(layer, []).append(logits)

        return hook

    def experts(self):
        """Return expert ids of each layer in order, [layers][tokens][picks], None = no expert."""
        return [torch.cat(self.said[layer]).tolist() for layer in sorted(self.said)]

    def naive(self, top_k):
        """Return the largest router logits of each layer: what `output_router_logits` would suggest."""
        return [torch.cat(self.logits[layer]).topk(top_k).indices.tolist() for layer in sorted(self.logits)]


def decisions(family, module, output, model):
    """Return experts [tokens, picks] and logits [tokens, experts] of what a router returned."""
    if family == "dbrx":
        return output.softmax(1).topk(model.config.ffn_config.moe_top_k).indices, output
    if family == "llama4_text":
        scores, logits = output
        rows = [row.nonzero()[:, 0] for row in scores]
        ordered = [row[scores[t, row].argsort(descending=True)] for t, row in enumerate(rows)]
        return torch.stack(ordered), logits
    if family == "jetmoe":
        order, tokens, _, sizes, logits = output
        # pairs sorted by expert: the first sizes[0] belong to expert 0
        expert_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        picks = torch.empty(len(order), dtype=torch.long)
        picks[order] = expert_of
        assert torch.equal(tokens, order // module.top_k)
        return picks.view(-1, module.top_k), logits
    logits, _, experts = output
    return experts, logits
