"""From a Hugging Face ``config.json`` to a ModelSpec: one resolver for the names that model families use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import FormatError, InputError
from moesim.base.units import count
from moesim.presets import ALIASES, PRESETS, preset
from moesim.spec import BF16, FP8_BLOCK, MXFP4, NVFP4, Attention, ModelSpec

_EXPERTS: Final = (
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "moe_num_experts",
    "ffn_config.moe_num_experts",
)
_TOP_K: Final = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts",
    "ffn_config.moe_top_k",
)  # fmt: skip
_LAYERS: Final = ("num_hidden_layers", "n_layers", "num_layers")
_HIDDEN: Final = ("hidden_size", "d_model")
_EXPERT_WIDTH: Final = (
    "moe_intermediate_size", "expert_ffn_hidden_size", "ffn_config.ffn_hidden_size", "intermediate_size",
)  # fmt: skip
_DENSE_WIDTH: Final = ("intermediate_size_mlp", "ffn_hidden_size", "intermediate_size")
_SHARED: Final = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SHARED_WIDTH: Final = ("shared_expert_intermediate_size", "shared_intermediate_size")
_GROUPS: Final = ("n_group", "num_expert_group")
_MOST_LAYERS: Final = 10_000
_DTYPES: Final = {"bfloat16": BF16, "float16": 2.0, "float32": 4.0, "float8_e4m3fn": 1.0}


def find(model: str | Path) -> ModelSpec:
    """Return a preset by name, or the model of a ``config.json`` (the file, or the folder that holds it).

    Raises
    ------
    UnknownName
        If there is no such preset, and nothing of that name on disk.
    FormatError
        If the file does not describe an MoE model.
    """
    name = str(model)
    if name.removeprefix("preset:") in {**PRESETS, **ALIASES}:
        return preset(name.removeprefix("preset:"))
    path = Path(model)
    if path.exists() or path.suffix == ".json" or len(path.parts) > 2:
        return read(path)
    return preset(name)


def read(path: str | Path) -> ModelSpec:
    """Read a ``config.json``, or the one in a folder.

    Raises
    ------
    FormatError
        If it does not describe an MoE model.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(file, "", f"{error.strerror or error}; give the config.json of the model") from None
    except UnicodeDecodeError:
        raise FormatError(file, "", "expected the config.json of a model, or a preset; found binary data") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(file, "", f"expected JSON, found {' '.join(str(error).split())}") from None
    if not isinstance(config, Mapping):
        raise FormatError(file, "", f"expected an object, found {type(config).__name__}")
    return from_config(config, name=_name(file.resolve()), path=file)


def _name(file: Path) -> str:
    """Return the name of a model: its folder, its repository in a download cache, or else that of the file."""
    cached = next((part for part in file.parts if part.startswith("models--")), None)
    if cached is not None:
        return cached.split("--")[-1]
    return file.parent.name if file.name == "config.json" else file.stem


def from_config(config: Mapping[str, Any], *, name: str, path: str | Path = "config.json") -> ModelSpec:
    """Return the spec of a configuration.

    Parameters
    ----------
    config
        The content of a ``config.json``.
    name
        Name of the model.
    path
        For messages.

    Raises
    ------
    FormatError
        If a fact is missing, is not a number, or contradicts another.
    """
    text = config.get("text_config", config)
    facts = _Facts(text if isinstance(text, Mapping) else config, path)
    family = facts.word("model_type") or str(config.get("model_type", ""))
    if family == "switch_transformers":
        return _switch(facts, name, path)
    if family in ("nllb-moe", "nllb_moe", "jetmoe"):
        raise FormatError(path, "model_type", f"{family} does not fit this resolver; describe it with ModelSpec")
    experts = facts.need(_EXPERTS, "number of experts")
    layers = facts.get(("num_layers",)) if family == "longcat_flash" else None
    layers = layers or facts.need(_LAYERS, "number of layers")
    if layers > _MOST_LAYERS:
        raise FormatError(path, "num_hidden_layers", f"expected at most {_MOST_LAYERS} layers, found {layers}")
    layer_ids = _moe_layers(facts, family, layers, path)
    llama4 = family.startswith("llama4")
    width = facts.need(("intermediate_size",) if llama4 else _EXPERT_WIDTH, "width of an expert")
    shared = 1 if llama4 else facts.get(_SHARED)
    shared_width = width * shared
    if own := facts.get(_SHARED_WIDTH):
        shared, shared_width = shared or 1, own
    groups = facts.get(_GROUPS) or 1
    dense = facts.get(_DENSE_WIDTH) if len(layer_ids) < layers else 0
    weight_bytes, dispatch_bytes = _bytes(facts, config, path)
    try:
        return ModelSpec(
            name=str(name),
            layer_ids=layer_ids,
            num_hidden_layers=layers,
            experts=experts,
            top_k=facts.need(_TOP_K, "number of experts a token picks"),
            hidden=facts.need(_HIDDEN, "width of the model"),
            intermediate=width,
            shared_experts=shared,
            shared_intermediate=shared_width,
            groups=groups if _limited(facts) else 1,
            group_limit=facts.get(("topk_group",)) or 1 if _limited(facts) else 1,
            dense_intermediate=dense,
            attention=_attention(facts),
            vocab=facts.get(("vocab_size",)),
            tied_embeddings=facts.flag("tie_word_embeddings"),
            weight_bytes=weight_bytes,
            dispatch_bytes=dispatch_bytes,
        )
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(path, "", str(error)) from None


class _Facts:
    """Numbers of a configuration by the names families give them, checked."""

    def __init__(self, config: Mapping[str, Any], path: str | Path) -> None:
        self.config, self.path = config, path

    def raw(self, name: str) -> Any:
        outer, dot, inner = name.partition(".")
        if not dot:
            return self.config.get(name)
        part = self.config.get(outer)
        return part.get(inner) if isinstance(part, Mapping) else None

    def get(self, names: tuple[str, ...]) -> int:
        """Return the first of these that is there, or 0."""
        for name in names:
            value = self.raw(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise FormatError(self.path, name, f"expected a number from 0 up, found {value!r}")
            return value
        return 0

    def need(self, names: tuple[str, ...], what: str) -> int:
        """Return the first of these that is there; FormatError if there is none."""
        if not (value := self.get(names)):
            raise FormatError(
                self.path, "", f"expected the {what} ({', '.join(names)}), found none; is it an MoE model?"
            )
        return value

    def numbers(self, name: str) -> list[int] | None:
        """Return a list of numbers, or None where there is none."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise FormatError(self.path, name, f"expected a list of layer numbers, found {value!r:.60}")
        return value

    def word(self, name: str) -> str:
        value = self.raw(name)
        return value if isinstance(value, str) else ""

    def flag(self, name: str) -> bool:
        return self.raw(name) is True


def _limited(facts: _Facts) -> bool:
    # deepseek_v2 carries n_group also where its router is plain top-k
    return facts.word("topk_method") != "greedy" and facts.get(_GROUPS) > 1


def _moe_layers(facts: _Facts, family: str, layers: int, path: str | Path) -> tuple[int, ...]:
    """Return the decoder index of every MoE layer by the rule of the family."""
    everything = range(layers)
    kinds = facts.raw("mlp_layer_types")
    if isinstance(kinds, list):
        if len(kinds) != layers:
            raise FormatError(path, "mlp_layer_types", f"expected {layers} kinds of layers, found {len(kinds)}")
        chosen = [i for i in everything if kinds[i] in ("sparse", "moe", "hash_moe")]
    elif (listed := facts.numbers("moe_layers")) is not None:
        chosen = sorted(set(listed))
    elif isinstance(marks := facts.raw("moe_layer_freq"), list):
        chosen = [i for i in everything if marks[i : i + 1] == [1]]
    elif step := facts.get(("interleave_moe_layer_step",)):
        chosen = list(everything[step - 1 :: step])
    elif period := facts.get(("expert_layer_period",)):
        chosen = list(everything[facts.get(("expert_layer_offset",)) :: period])
    elif facts.raw("decoder_sparse_step") is not None or facts.raw("mlp_only_layers"):
        step = facts.get(("decoder_sparse_step",)) or 1
        dense = set(facts.numbers("mlp_only_layers") or ())
        chosen = [i for i in everything if i not in dense and (i + 1) % step == 0]
    elif family.startswith("ernie4_5"):
        first, step = facts.get(("moe_layer_start_index",)), facts.get(("moe_layer_interval",)) or 1
        last = facts.raw("moe_layer_end_index")
        stop = layers if last is None or last == -1 else facts.get(("moe_layer_end_index",)) + 1
        chosen = [i for i in everything if (i + 1) % step == 0 and first <= i < stop]
    else:
        first = facts.get(("first_k_dense_replace", "num_dense_layers"))
        step = facts.get(("moe_layer_freq",)) or 1
        chosen = [i for i in everything if i >= first and i % step == 0]
    if not chosen:
        raise FormatError(path, "", f"none of its {count(layers, 'layer')} is an MoE layer by its configuration")
    return tuple(chosen)


def _attention(facts: _Facts) -> Attention | None:
    heads = facts.get(("num_attention_heads", "n_heads", "num_heads"))
    if not heads:
        return None
    if kv_rank := facts.get(("kv_lora_rank",)):
        return Attention(
            heads=heads,
            kv_heads=facts.get(("num_key_value_heads",)) or heads,
            head_dim=facts.get(("qk_nope_head_dim",)),
            q_rank=facts.get(("q_lora_rank",)),
            kv_rank=kv_rank,
            rope_dim=facts.get(("qk_rope_head_dim",)),
            value_dim=facts.get(("v_head_dim",)),
        )
    width = facts.get(("head_dim", "d_kv")) or facts.get(_HIDDEN) // heads
    kv_heads = facts.get(("num_key_value_heads", "attn_config.kv_n_heads")) or heads
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=width)


def _bytes(facts: _Facts, config: Mapping[str, Any], path: str | Path) -> tuple[float, float]:
    """Return the bytes per element of expert weights and of dispatched tokens."""
    quantized = facts.raw("quantization_config") or config.get("quantization_config")
    if isinstance(quantized, Mapping):
        found = _quantized(quantized)
        if found is None:
            raise FormatError(
                path, "quantization_config",
                f"how wide weights are under {quantized.get('quant_method')!r} is not known; put the bits of a routed "
                "expert's weight there ({\"bits\": 4}), or leave the table out for the width of torch_dtype",
            )  # fmt: skip
        return found
    dtype = facts.word("torch_dtype") or facts.word("dtype") or str(config.get("torch_dtype", ""))
    return _DTYPES.get(dtype, BF16), BF16


def _quantized(table: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the bytes per element of expert weights and of dispatched tokens, None where the table does not tell."""
    method, algorithm = str(table.get("quant_method")), str(table.get("quant_algo", "")).upper()
    if method in ("fp8", "fbgemm_fp8") or algorithm.startswith("FP8"):
        return 1.0, FP8_BLOCK
    if method == "mxfp4":
        return MXFP4, BF16
    if algorithm == "NVFP4":  # of four-bit tokens too
        return NVFP4, NVFP4
    if method == "compressed-tensors":
        return _compressed(table.get("config_groups"))
    if method == "bitsandbytes" and True in (table.get("load_in_4bit"), table.get("load_in_8bit")):
        return (0.5 if table.get("load_in_4bit") else 1.0), BF16
    bits = table.get("bits")
    return (bits / 8, BF16) if isinstance(bits, int) and 1 <= bits <= 16 else None


def _compressed(groups: Any) -> tuple[float, float] | None:
    """Return the same of compressed-tensors, whose groups say what is done to which layers."""
    kinds = set()
    for group in groups.values() if isinstance(groups, Mapping) else ():
        parts = [group.get(name) if isinstance(group, Mapping) else None for name in ("weights", "input_activations")]
        weights, tokens = (part if isinstance(part, Mapping) else {} for part in parts)
        kinds.add((weights.get("num_bits"), weights.get("type"), tokens.get("num_bits")))
    if len(kinds) != 1:
        return None  # some layers are narrower than others, and patterns of names tell which
    bits, kind, of_tokens = kinds.pop()
    if kind == "float" and bits == 8:
        return 1.0, FP8_BLOCK if of_tokens == 8 else BF16
    if kind == "float" and bits == 4:
        return NVFP4, NVFP4 if of_tokens == 4 else BF16
    return (bits / 8, BF16) if isinstance(bits, int) and 1 <= bits <= 16 else None


def _switch(facts: _Facts, name: str, path: str | Path) -> ModelSpec:
    """Return an encoder-decoder spec: encoder layers first, then decoder layers."""
    encoder = facts.need(("num_layers",), "number of encoder layers")
    decoder = facts.get(("num_decoder_layers",)) or encoder
    chosen: list[int] = []
    for first, layers, side in ((0, encoder, "encoder"), (encoder, decoder, "decoder")):
        sparse = facts.get((f"num_sparse_{side}_layers",))
        step = facts.get((f"{side}_sparse_step",)) or (layers // sparse if sparse else 0)
        # a step of 1 makes every layer sparse; otherwise the layers 1, 1 + step, ...
        if step:
            chosen += [first + i for i in range(layers) if step == 1 or i % step == 1]
    width = facts.need(("expert_d_ff", "d_ff"), "width of an expert")
    try:
        return ModelSpec(
            name=str(name),
            layer_ids=tuple(chosen),
            num_hidden_layers=encoder + decoder,
            experts=facts.need(_EXPERTS, "number of experts"),
            top_k=1,
            hidden=facts.need(_HIDDEN, "width of the model"),
            intermediate=width,
            gated=False,
            dense_intermediate=facts.get(("d_ff",)) if len(chosen) < encoder + decoder else 0,
            attention=_attention(facts),
            vocab=facts.get(("vocab_size",)),
            # T5's embeddings are tied unless the configuration says otherwise
            tied_embeddings=facts.raw("tie_word_embeddings") is not False,
        )
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(path, "", str(error)) from None
