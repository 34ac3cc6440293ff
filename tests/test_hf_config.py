"""A model's config.json gives the same spec as its preset; every family's names and layer rules are understood."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, MoesimError, UnknownName
from moesim.hf_config import find, from_config
from moesim.spec import BF16, FP8_BLOCK, NVFP4, PRESETS, ModelSpec

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_layer_freq": 1,
}  # fmt: skip
LLAMA4 = {
    "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48, "num_experts_per_tok": 1, "num_attention_heads": 40, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 202048, "tie_word_embeddings": False,
}  # fmt: skip

# the keys of each published config.json that matter here
CONFIGS = {
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_local_experts": 8, "num_experts_per_tok": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "torch_dtype": "bfloat16",
    },
    "deepseek-v2-lite": DEEPSEEK | {
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "first_k_dense_replace": 1, "n_routed_experts": 64, "num_experts_per_tok": 6,
        "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "q_lora_rank": None,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400,
    },
    "deepseek-v2": DEEPSEEK | {
        "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 60, "first_k_dense_replace": 1, "n_routed_experts": 160, "num_experts_per_tok": 6,
        "n_shared_experts": 2, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
        "vocab_size": 102400,
    },
    "deepseek-v3": DEEPSEEK | {
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
        "first_k_dense_replace": 3, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "vocab_size": 129280, "quantization_config": FP8,
    },
    "kimi-k2": DEEPSEEK | {
        "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "first_k_dense_replace": 1, "n_routed_experts": 384, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_attention_heads": 64, "num_key_value_heads": 64,
        "vocab_size": 163840, "quantization_config": FP8,
    },
    "glm-4.5": {
        "model_type": "glm4_moe", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 92, "first_k_dense_replace": 3, "n_routed_experts": 160, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_attention_heads": 96, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151552,
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_experts": 60, "num_experts_per_tok": 4,
        "decoder_sparse_step": 1, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936,
    },
    "qwen2-57b-a14b": {
        "model_type": "qwen2_moe", "hidden_size": 3584, "intermediate_size": 18944, "moe_intermediate_size": 2560,
        "shared_expert_intermediate_size": 20480, "num_hidden_layers": 28, "num_experts": 64, "num_experts_per_tok": 8,
        "decoder_sparse_step": 1, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151936,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 151936,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
        "num_local_experts": 32, "num_experts_per_tok": 4, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "vocab_size": 201088, "quantization_config": {"quant_method": "mxfp4"},
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "num_attention_heads": 16, "num_key_value_heads": 16,
        "vocab_size": 50304,
    },
    "llama-4-scout": {"model_type": "llama4", "text_config": LLAMA4 | {
        "num_local_experts": 16, "interleave_moe_layer_step": 1,
    }},
    "llama-4-maverick": {"model_type": "llama4", "text_config": LLAMA4 | {
        "num_local_experts": 128, "interleave_moe_layer_step": 2,
    }},
    "switch-c-2048": {
        "model_type": "switch_transformers", "d_model": 2080, "d_ff": 6144, "d_kv": 64, "num_heads": 32,
        "num_layers": 15, "num_decoder_layers": 15, "num_experts": 2048, "num_sparse_encoder_layers": 15,
        "num_sparse_decoder_layers": 15, "vocab_size": 32128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_preset(name):
    assert from_config(CONFIGS[name], name=name) == PRESETS[name]


EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
PICKS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


def tiny(**facts):
    """A model of 8 layers, of 8 experts and 2 picks unless told otherwise."""
    base = {"hidden_size": 16, "moe_intermediate_size": 4, "intermediate_size": 32, "num_hidden_layers": 8}
    experts = {} if set(facts) & set(EXPERTS) else {"num_experts": 8}
    picks = {} if set(facts) & set(PICKS) else {"num_experts_per_tok": 2}
    return from_config(base | experts | picks | facts, name="tiny")


ALL = (0, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("facts", "layer_ids"),
    [
        ({}, ALL),
        ({"first_k_dense_replace": 3}, (3, 4, 5, 6, 7)),
        ({"num_dense_layers": 2}, (2, 3, 4, 5, 6, 7)),
        ({"decoder_sparse_step": 2}, (1, 3, 5, 7)),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 5]}, (1, 2, 3, 4, 6, 7)),
        ({"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 5}, (3, 4, 5, 6, 7)),
        ({"mlp_layer_types": ["hash_moe"] + ["moe"] * 7}, ALL),
        ({"interleave_moe_layer_step": 4}, (3, 7)),
        ({"moe_layers": [5, 2]}, (2, 5)),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, (1, 3, 5, 7)),
        ({"moe_layer_freq": 2, "first_k_dense_replace": 1}, (2, 4, 6)),
        ({"moe_layer_freq": [0, 1, 1, 1, 0, 1, 1, 1]}, (1, 2, 3, 5, 6, 7)),
        (
            {"model_type": "ernie4_5_moe", "moe_layer_start_index": 1, "moe_layer_end_index": 5, "moe_num_experts": 8},
            (1, 2, 3, 4, 5),
        ),
        ({"model_type": "ernie4_5_moe", "moe_layer_start_index": 1, "moe_layer_end_index": -1}, (1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_which_layers_are_moe_layers(facts, layer_ids):
    spec = tiny(**facts)
    assert spec.layer_ids == layer_ids
    assert spec.num_hidden_layers == 8
    assert spec.dense_intermediate == (32 if len(layer_ids) < 8 else 0)


@pytest.mark.parametrize("key", EXPERTS)
@pytest.mark.parametrize("picks", PICKS)
def test_names_of_experts_and_picks(key, picks):
    spec = tiny(**{key: 12, picks: 3})
    assert (spec.experts, spec.top_k) == (12, 3)


def test_dbrx_keeps_its_facts_one_level_down():
    spec = from_config(
        {
            "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352,
            "attn_config": {"kv_n_heads": 8},
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        },
        name="dbrx",
    )  # fmt: skip
    assert spec.parameters() / 1e9 == pytest.approx(132, rel=0.01)
    assert spec.parameters(active=True) / 1e9 == pytest.approx(36, rel=0.02)


def test_shared_experts_groups_and_bytes():
    assert (tiny(n_shared_experts=2).shared_intermediate, tiny(n_shared_experts=2).shared_experts) == (8, 2)
    assert tiny(shared_intermediate_size=24).shared_intermediate == 24
    grouped = tiny(num_expert_group=4, topk_group=2)
    assert (grouped.groups, grouped.group_limit) == (4, 2)
    # a router that is plain top-k ignores its groups
    assert tiny(n_group=4, topk_group=2, topk_method="greedy").groups == 1
    assert tiny(quantization_config={"bits": 4}).weight_bytes == 0.5
    assert tiny(torch_dtype="float8_e4m3fn").weight_bytes == 1
    assert tiny(torch_dtype="float32").weight_bytes == 4
    assert tiny(tie_word_embeddings=True).tied_embeddings


def _compressed(bits: int, kind: str, tokens: int | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind}}
    return group | {"input_activations": None if tokens is None else {"num_bits": tokens, "type": kind}}


@pytest.mark.parametrize(
    ("table", "weights", "tokens"),
    [
        ({"quant_method": "fbgemm_fp8"}, 1.0, FP8_BLOCK),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0, FP8_BLOCK),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, NVFP4, NVFP4),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": _compressed(8, "float", 8)}}, 1.0, FP8_BLOCK),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": _compressed(4, "int", None)}}, 0.5, BF16),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": _compressed(4, "float", 4)}}, NVFP4, NVFP4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5, BF16),
        ({"quant_method": "awq", "bits": 4}, 0.5, BF16),
    ],
)
def test_how_wide_quantised_weights_are(table: dict[str, Any], weights: float, tokens: float):
    spec = tiny(quantization_config=table)
    assert (spec.weight_bytes, spec.dispatch_bytes) == (weights, tokens)


@pytest.mark.parametrize(
    "table",
    [
        {"quant_method": "quark"},
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        {"quant_method": "compressed-tensors", "config_groups": {"group": "Linear"}},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": _compressed(8, "float", 8), "b": _compressed(4, "int", None)},
        },
    ],
)
def test_a_quantisation_that_is_not_known_is_not_taken_for_bf16(table: dict[str, Any]):
    with pytest.raises(FormatError, match=r"quantization_config.*is not known; put the bits"):
        tiny(quantization_config=table)


def test_an_encoder_and_a_decoder_have_one_row_of_layers():
    spec = from_config(
        {
            "model_type": "switch_transformers", "d_model": 16, "d_ff": 32, "num_layers": 6, "num_decoder_layers": 4,
            "num_experts": 8, "encoder_sparse_step": 2, "decoder_sparse_step": 2,
        },
        name="switch",
    )  # fmt: skip
    assert spec.layer_ids == (1, 3, 5, 7, 9)
    assert (spec.top_k, spec.gated, spec.num_hidden_layers) == (1, False, 10)


def test_a_model_is_found_by_name_folder_or_file(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["deepseek-v3"]))
    expected = replace(PRESETS["deepseek-v3"], name="my-model")
    assert find(folder) == find(str(folder / "config.json")) == ModelSpec.find(folder) == expected
    cached = tmp_path / "models--org--Nice-MoE" / "snapshots" / "0123abcd"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(CONFIGS["deepseek-v3"]))
    assert find(cached).name == "Nice-MoE"
    assert find("deepseek-v3") is find("preset:deepseek-r1") is PRESETS["deepseek-v3"]
    with pytest.raises(UnknownName, match="did you mean 'deepseek-v3'"):
        find("deepseekv3")
    with pytest.raises(FormatError, match=r"nowhere\.json: No such file"):
        find(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, "expected the number of experts .* found none; is it an MoE model"),
        ({"num_experts": "8"}, "num_experts: expected a number from 0 up, found '8'"),
        ({"num_experts_per_tok": None}, "number of experts a token picks"),
        ({"num_experts_per_tok": 9}, "top_k 9 is more than its 8 experts"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers: expected a list of layer numbers"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types: expected 8 kinds of layers, found 1"),
        ({"mlp_layer_types": ["dense"] * 8}, "none of its 8 layers is an MoE layer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most 10000 layers, found 1000000000"),
        ({"moe_layers": [99]}, r"layer_ids must lie in 0\.\.7"),
        ({"n_group": 3, "topk_group": 1}, "3 groups do not divide 8 experts"),
        ({"model_type": "jetmoe"}, "model_type: jetmoe does not fit"),
    ],
)
def test_a_config_that_describes_no_moe_model_is_refused(change, message):
    config = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 8, "num_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    with pytest.raises(FormatError, match=message):
        from_config(config | change, name="tiny", path="dir/config.json")


def test_files_that_are_no_config_are_refused(tmp_path):
    path = tmp_path / "config.json"
    for content, message in [("{", "expected JSON"), ("[]", "expected an object, found list")]:
        path.write_text(content)
        with pytest.raises(FormatError, match=message):
            find(path)
    path.write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(FormatError, match=r"expected the config\.json of a model, or a preset; found binary data"):
        find(path)


values = st.none() | st.booleans() | st.integers(-2, 70) | st.text(max_size=3) | st.lists(st.integers(0, 9), max_size=3)


@settings(deadline=None, max_examples=80)
@given(change=st.dictionaries(st.sampled_from(sorted({k for c in CONFIGS.values() for k in c})), values, max_size=5))
def test_odd_values_give_a_spec_or_one_line(change):
    problem = ""
    try:
        from_config(CONFIGS["deepseek-v3"] | change, name="odd")
    except MoesimError as error:
        problem = str(error)
    assert "\n" not in problem
