"""Which model architectures an engine can place experts of, and which architecture a model has.

An engine that does not know a model ignores the map, and serves as if there were none.
"""

from __future__ import annotations

from typing import Final

# Beginnings of model names, as in our presets and on the hub; `architectures` of their config.json.
_BY_NAME: Final = {
    "deepseek-v2": "DeepseekV2ForCausalLM",
    "deepseek-v3": "DeepseekV3ForCausalLM",
    "deepseek-r1": "DeepseekV3ForCausalLM",
    "deepseek-v4": "DeepseekV4ForCausalLM",
    "kimi-k2": "DeepseekV3ForCausalLM",
    "qwen1.5-moe": "Qwen2MoeForCausalLM",
    "qwen2-57b": "Qwen2MoeForCausalLM",
    "qwen2-moe": "Qwen2MoeForCausalLM",
    "qwen3-30b": "Qwen3MoeForCausalLM",
    "qwen3-235b": "Qwen3MoeForCausalLM",
    "qwen3-coder": "Qwen3MoeForCausalLM",
    "qwen3-next": "Qwen3NextForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "glm-4.5": "Glm4MoeForCausalLM",
    "glm-4.6": "Glm4MoeForCausalLM",
    "minimax-m2": "MiniMaxM2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "llama-4": "Llama4ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "granite": "GraniteMoeForCausalLM",
    "phi-3.5-moe": "PhiMoEForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "dbrx": "DbrxForCausalLM",
    "grok": "Grok1ForCausalLM",
    "switch": "SwitchTransformersForConditionalGeneration",
}

SGLANG: Final = frozenset({
    "BailingMoEForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "BailingMoeV2_5ForCausalLM",
    "BailingMoeV3ForCausalLM", "BailingMoeV3VLForConditionalGeneration", "DeepseekV2ForCausalLM",
    "DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV4ForCausalLM", "Dots3NoteForCausalLM",
    "DotsVLMForCausalLM", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM", "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM", "Glm5NextForConditionalGeneration", "GlmMoeDsaForCausalLM", "GptOssForCausalLM",
    "InternS1ProForConditionalGeneration", "InternS2PreviewForConditionalGeneration", "K2HorizonForCausalLM",
    "KimiK25ForConditionalGeneration", "LLaDA2MoeModelLM", "LongcatFlashForCausalLM", "MellumForCausalLM",
    "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "MiniMaxM2ForCausalLM", "MiniMaxM3SparseForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration", "MistralLarge3ForCausalLM", "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM", "NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Nano_VL_V2",
    "NemotronH_Omni_Reasoning_V3", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM",
    "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration", "Qwen4ExpForConditionalGeneration", "SDARMoeForCausalLM",
    "SarvamMLAForCausalLM", "SarvamMoEForCausalLM", "Step3VLForConditionalGeneration", "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration", "XllmForCausalLM",
})  # fmt: skip
"""Architectures whose experts SGLang 0.5.23 can place: classes with ``get_model_config_for_expert_location``, draft
models and the stand-ins for other libraries left out."""

TRTLLM: Final = frozenset({
    "DeepseekV3ForCausalLM", "Llama4ForConditionalGeneration", "MixtralForCausalLM", "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
})  # fmt: skip
"""Architectures that TensorRT-LLM balances; all others it serves without, and does not say so."""


def architecture_of(model: str) -> str | None:
    """Return the architecture of a model by its name, or None where the name does not tell."""
    # "mine @ theirs" is the routing of the first at the dimensions of the second
    name = model.partition(" @ ")[0].rpartition("/")[2].lower().replace("_", "-")
    return next((kind for start, kind in _BY_NAME.items() if name.startswith(start)), None)
