"""Run prompts through a model of transformers and write what its routers decide, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.base.errors import InputError, MissingExtra
from moesim.base.units import count
from moesim.capture.align import Seen, rows_of
from moesim.capture.hooks import capture
from moesim.capture.prompts import Prompt, digest_of, read_prompts
from moesim.trace import Trace

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[int, int, int], None]
"""Told the prompts done, of how many, and the tokens captured."""
_WINDOW: Final = 16
"""Batches among which prompts are sorted by length, so that little is padding."""


@dataclass(frozen=True)
class Generation:
    """How prompts are run.

    Parameters
    ----------
    new_tokens
        Most tokens generated for a prompt; 0 for prefill alone.
    prompt_tokens
        Longer prompts are cut to so many tokens, the first.
    batch
        Prompts in a batch.
    temperature
        Of sampling; 0 takes the likeliest token.
    chat
        Whether texts are put into the model's chat template; messages always are.
    seed
        Of sampling.
    """

    new_tokens: int = 64
    prompt_tokens: int = 2048
    batch: int = 8
    temperature: float = 0.0
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.new_tokens < 0 or self.prompt_tokens < 1 or self.batch < 1 or self.temperature < 0:
            raise InputError(
                "capture: expected new tokens and temperature from 0, prompt tokens and batch from 1, got "
                f"{self.new_tokens}, {self.temperature:g}, {self.prompt_tokens} and {self.batch}"
            )


def capture_transformers(
    model: str | Path, prompts: str | Path, output: str | Path, *, how: Generation | None = None,
    column: str | None = None, domain: str | None = None, limit: int | None = None, device: str = "cpu",
    dtype: str = "auto", weights: bool = True, trust_remote_code: bool = False, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Run prompts through a model and write the routing of every token as a trace file; return its tokens.

    Each prompt is a request of the trace. What ran together is not recorded: batches of a capture are not those of a
    server. After each batch what was captured is on disk; run again after a kill, the capture goes on from there.

    Parameters
    ----------
    model
        Folder or Hugging Face id of a model of transformers 5.0 or later.
    prompts, column, domain, limit
        See `read_prompts`.
    output
        Trace file to write.
    device
        torch device, or ``"auto"`` to spread the model over all there are (needs accelerate).
    dtype
        Of the weights: ``"auto"`` as stored, ``"bfloat16"``, ``"float32"``, ...
    weights
        Whether gate weights are kept.

    Raises
    ------
    MoesimError
        If the model or the prompts cannot be read, or the model has no experts.
    """
    how = how or Generation()
    items = read_prompts(prompts, column=column, domain=domain, limit=limit)
    loaded = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    facts = {
        "prompts": {"file": Path(prompts).name, "digest": digest_of(prompts), "count": len(items)},
        "generation": asdict(how),
        "model": Path(model).name,
        "steps": "not recorded: the batches of a capture are not those of a server",
        "gate_weights": weights,
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
    }
    return run(loaded, items, output, how=how, origin=facts, weights=weights, progress=progress)


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer (None where prompts come as token ids)."""

    model: nn.Module
    tokenizer: Any = None


def load(model: str | Path, *, device: str = "cpu", dtype: str = "auto", trust_remote_code: bool = False) -> Loaded:
    """Load a model and its tokenizer, if it has one.

    Raises
    ------
    InputError
        If it cannot be loaded, with the reason.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "capture") from None
    if int(transformers.__version__.split(".")[0]) < 5:
        raise InputError(
            f"transformers {transformers.__version__} computes top-k inside each block, where it cannot be seen: "
            "pip install 'transformers>=5.0'"
        )
    try:
        torch.empty(0, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {_line(error)}") from None
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = transformers.AutoConfig.from_pretrained(model, **options)
            kind: Any = transformers.AutoModelForCausalLM
            if getattr(config, "is_encoder_decoder", False):
                kind = transformers.AutoModelForSeq2SeqLM
            elif type(config) not in kind._model_mapping:
                # models of images and text run on text alone as well
                images: Any = transformers.AutoModelForImageTextToText
                kind = images if type(config) in images._model_mapping else kind
            spread = {"device_map": "auto"} if device == "auto" else {}
            net: Any = kind.from_pretrained(model, dtype=dtype, **spread, **options)
        except Exception as error:  # configurations, weights and code of others raise what they like
            raise InputError(f"{model}: transformers cannot load it: {_line(error)}") from None
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
        except Exception:  # as above; where a prompt needs the tokenizer, its absence is told
            tokenizer = None
    return Loaded((net if device == "auto" else net.to(device)).eval(), tokenizer)


def run(
    loaded: Loaded, prompts: Sequence[Prompt], output: str | Path, *, how: Generation, origin: dict[str, Any],
    weights: bool = True, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Run prompts through a loaded model; see `capture_transformers`."""
    import torch

    from moesim.trace.spool import Spool

    net: Any = loaded.model
    domains = tuple(dict.fromkeys(prompt.domain for prompt in prompts))
    encoded = [(prompt, encode(loaded, prompt, how)) for prompt in prompts]
    with (
        torch.inference_mode(),
        capture(net, keep_weights=weights, phase="prefill", origin=origin) as recorder,
        Spool(output, recorder.origin, resume=True) as spool,
    ):
        done = 0
        for number, batch in enumerate(_batches(encoded, how.batch)):
            if number >= spool.chunks:
                try:
                    seen = forward(net, [tokens for _, tokens in batch], how, number)
                except torch.OutOfMemoryError:
                    raise InputError(
                        f"the device has no memory for {count(len(batch), 'prompt')} at once: lower --batch"
                    ) from None
                spool.append(_chunk(recorder, seen, [prompt for prompt, _ in batch], domains))
            done += len(batch)
            if progress is not None:
                progress(done, len(prompts), spool.rows)
        return spool.rows


def _chunk(recorder: Any, seen: Seen, prompts: Sequence[Prompt], domains: tuple[str, ...]) -> Trace:
    parts = rows_of(seen, recorder.drain())
    codes = np.array([domains.index(prompt.domain) for prompt in prompts])
    numbers = np.array([prompt.number for prompt in prompts])
    return Trace(
        recorder.spec(parts.experts.shape[2]),
        parts.experts,
        parts.weights,
        request=numbers[parts.sequence],
        position=parts.position,
        phase=parts.phase,
        domain=codes[parts.sequence],
        domains=domains,
        origin=recorder.origin,
    )


def encode(loaded: Loaded, prompt: Prompt, how: Generation) -> list[int]:
    """Return the token ids of a prompt, cut to the longest allowed.

    Raises
    ------
    InputError
        If the model has no tokenizer or chat template and the prompt needs one, or an id is not in its vocabulary.
    """
    if prompt.tokens is not None:
        tokens = list(prompt.tokens)
    else:
        if loaded.tokenizer is None:
            raise InputError(f"prompt {prompt.number}: the model's folder has no tokenizer; give prompts as input_ids")
        messages = prompt.messages or ([{"role": "user", "content": prompt.text}] if how.chat else None)
        if messages is None:
            tokens = list(loaded.tokenizer(prompt.text)["input_ids"])
        else:
            try:
                text = loaded.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
            except Exception as error:  # templates are programs and raise what they like
                raise InputError(f"prompt {prompt.number}: the model's chat template fails: {_line(error)}") from None
            tokens = list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[operator,union-attr]
    room = context - how.new_tokens if isinstance(context, int) else how.prompt_tokens
    if room < 1:
        raise InputError(f"the model's context holds {context} tokens, no prompt and {how.new_tokens} new ones")
    tokens = tokens[: min(how.prompt_tokens, room)]
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if not tokens or max(tokens) >= vocabulary:
        raise InputError(
            f"prompt {prompt.number}: expected token ids below {vocabulary}, the vocabulary of the model, "
            f"found {max(tokens, default='no tokens')}"
        )
    return tokens


def forward(net: Any, prompts: Sequence[Sequence[int]], how: Generation, number: int) -> Seen:
    """Run a batch of prompts, generating new tokens, and return which token each recorded row was."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        # to the left, so that generated tokens follow the prompt
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    device = net.get_input_embeddings().weight.device
    given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    encoder = bool(getattr(net.config, "is_encoder_decoder", False))
    ends = _ends(net)
    if how.new_tokens == 0 and not encoder:
        net(**given, use_cache=False)
        return Seen(mask.numpy(), ids.numpy(), longest, ends, encoder)
    torch.manual_seed(how.seed + number)
    sampling = {"do_sample": True, "temperature": how.temperature} if how.temperature else {"do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = net.generate(
            **given, **sampling, max_new_tokens=max(how.new_tokens, 1), num_beams=1,
            pad_token_id=ends[0] if ends else 0, return_dict_in_generate=False,
        )  # fmt: skip
    return Seen(mask.numpy(), full.cpu().numpy(), longest, ends, encoder)


def _ends(net: Any) -> tuple[int, ...]:
    settings = getattr(net, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    found = getattr(net.config, "eos_token_id", None) if found is None else found
    return () if found is None else tuple(int(token) for token in (found if isinstance(found, list) else [found]))


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size * _WINDOW):
        window = sorted(items[first : first + size * _WINDOW], key=lambda item: len(item[1]))
        for start in range(0, len(window), size):
            yield window[start : start + size]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
