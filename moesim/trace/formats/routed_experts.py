"""Routed experts in responses of SGLang and vLLM, saved as JSON, a list of them, or JSONL.

SGLang gives ``meta_info.routed_experts`` (``sglext.routed_experts`` in its OpenAI API): base64 of int32
[tokens, decoder layers, top_k]. vLLM gives ``routed_experts`` in every choice: base64 of a npy file of that shape.
Ids are logical, rows of dense layers hold nothing, and the last token of a request was never routed.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.formats.common import (
    BROKEN_NPY,
    expert_ids,
    first_line,
    head,
    join,
    json_lines,
    one_line,
    origin_of,
    parse_json,
    phase_code,
    problems_of,
    read_text,
)
from moesim.trace.formats.model import check_options, given_model, moe_rows
from moesim.trace.trace import DECODE, PREFILL, Trace

_NPY: Final = b"\x93NUMPY"
_NPY_BASE64: Final = base64.b64encode(_NPY).decode()
_KEY: Final = b'"routed_experts"'


def sniff(path: str | Path) -> bool:
    """Return whether the file is JSON in which ``routed_experts`` occurs."""
    if head(path, 64).lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        with open(path, "rb") as file:
            tail = b""
            while block := file.read(1 << 20):
                if _KEY in tail + block:
                    return True
                tail = block[-len(_KEY) :]
    except OSError:
        return False
    return False


def parts(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    start: int | None = None,
    phase: str | None = None,
    domain: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Iterator[Trace]:
    """Yield the tokens of one request after another; see `read`."""
    check_options(model=model, start=start, phase=phase, domain=domain, origin=origin)
    with problems_of(path):
        spec = given_model(model)
        number = 0
        for place, response in _responses(path):
            name = "unlabelled" if domain is None else response.get(domain)
            if not isinstance(name, str):
                raise FormatError(path, f"{place}, {domain}", f"expected the name of a domain, found {name!r:.60}")
            for part in reply_traces(
                path, place, response, spec, number=number, start=start, phase=phase, domain=name, origin=origin
            ):
                yield part
                number += 1


def reply_traces(
    path: str | Path, place: str, response: Mapping[str, Any], spec: ModelSpec, *, number: int = 0,
    start: int | None = None, phase: str | None = None, domain: str | None = None,
    origin: Mapping[str, Any] | None = None, whole: bool = False,
) -> Iterator[Trace]:  # fmt: skip
    """Yield the tokens of each answer in a response; see `read`.

    Parameters
    ----------
    place
        Where the response is, for messages.
    number
        Request of the first answer; the next ones follow.
    domain
        Name of the domain; None takes the response's own ``domain``, if it has one.
    whole
        Whether the rows of all tokens were asked for, so that fewer are an error.
    """
    own = response.get("domain")
    name = domain or (own if isinstance(own, str) and own else "unlabelled")
    for where, payload, prompt, total in _payloads(path, place, response):
        routes = _decode(path, where, payload, spec)
        T = len(routes)
        first = start if start is not None else 0 if total is None else total - 1 - T
        if first < 0 or (whole and first > 0):
            less = "more" if first < 0 else "fewer"
            raise FormatError(
                path, where, f"holds {count(T, 'token')}, {less} than the {total} of its request less one"
            )
        position = first + np.arange(T)
        told = phase is not None or prompt is not None
        by_length = np.where(position >= (math.inf if prompt is None else prompt), DECODE, PREFILL)
        yield Trace(
            spec,
            routes,
            request=np.full(T, number),
            position=position,
            phase=by_length if phase is None else np.full(T, phase_code(phase, PREFILL)),
            domains=(name,),
            origin=origin_of(
                path,
                "routed-experts",
                "vLLM" if payload.startswith(_NPY_BASE64) else "SGLang",
                spec,
                origin,
                phase="" if told else "assumed prefill where a response does not tell the length of its prompt",
            ),
        )
        number += 1


def has_routes(response: Mapping[str, Any]) -> bool:
    """Return whether there are routed experts in a response."""
    try:
        return bool(list(_payloads("", "", response)))
    except FormatError as error:
        return "found none" not in error.problem


def tokens_told(response: Mapping[str, Any]) -> int | None:
    """Return how many tokens a response says that it and its prompt have, or None."""
    counts = response.get("meta_info")
    if not isinstance(counts, Mapping) or "prompt_tokens" not in counts:
        counts = response.get("usage")
    found = [_count(counts, key) for key in ("prompt_tokens", "completion_tokens")]
    return None if None in found else sum(filter(None, found))


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    start: int | None = None,
    phase: str | None = None,
    domain: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read the routed experts of saved responses.

    Parameters
    ----------
    model
        The model that was served: name of a preset, its config.json, or a spec.
    start
        Position of the first row, where fewer rows were asked for (``routed_experts_start_len`` of SGLang,
        ``routed_experts_prompt_start`` of vLLM) and the response has no token counts that tell it.
    phase
        Phase of all tokens; otherwise those behind the prompt are decode.
    domain
        Key of each response that names its domain.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If a response is damaged or does not fit the model.
    """
    return join(path, parts(path, model=model, start=start, phase=phase, domain=domain, origin=origin))


def _responses(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # an object that ends on its first line is the first of JSONL
    if first_line(path, -1):
        yield from json_lines(path)
    else:
        content = parse_json(path, "", read_text(path))
        for number, item in enumerate(content if isinstance(content, list) else [content]):
            if not isinstance(item, dict):
                raise FormatError(path, f"response {number}", f"expected an object, found {type(item).__name__}")
            yield f"response {number}", item


def _payloads(
    path: str | Path, place: str, response: Mapping[str, Any]
) -> Iterator[tuple[str, str, int | None, int | None]]:
    """Yield place, payload, length of the prompt, and of prompt and answer, as far as they are told."""
    found: list[tuple[str, Any]] = []
    for outer in ("meta_info", "sglext", "nvext"):
        part = response.get(outer)
        if isinstance(part, Mapping) and part.get("routed_experts") is not None:
            found.append((f"{place}, {outer}", part["routed_experts"]))
    choices = response.get("choices")
    for number, choice in enumerate(choices if isinstance(choices, list) else ()):
        if isinstance(choice, Mapping) and choice.get("routed_experts") is not None:
            found.append((f"{place}, choices.{number}", choice["routed_experts"]))
    if response.get("routed_experts") is not None:
        found.append((place, response["routed_experts"]))
    if not found:
        raise FormatError(path, place, "expected routed_experts, found none; ask for them with each request")
    counts = response.get("meta_info")
    if not isinstance(counts, Mapping) or "prompt_tokens" not in counts:
        counts = response.get("usage")
    prompt, answer = (_count(counts, key) for key in ("prompt_tokens", "completion_tokens"))
    # the answers of several choices are counted together
    total = prompt + answer if prompt is not None and answer is not None and len(found) == 1 else None
    for where, payload in found:
        if not isinstance(payload, str):
            kind = type(payload).__name__
            raise FormatError(path, f"{where}, routed_experts", f"expected base64 text, found {kind}")
        yield f"{where}, routed_experts", payload, prompt, total


def _count(counts: Any, key: str) -> int | None:
    value = counts.get(key) if isinstance(counts, Mapping) else None
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def _decode(path: str | Path, place: str, payload: str, spec: ModelSpec) -> Array:
    """Return logical ids int16 [tokens, layers, top_k] of a payload."""
    try:
        raw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(path, place, f"expected base64, found {one_line(error)}") from None
    if raw.startswith(_NPY):
        array = _npy(path, place, raw)
        if array.ndim != 3 or array.dtype.kind not in "iu" or array.shape[2] != spec.top_k:
            found = f"found {array.dtype} {list(array.shape)}; give another model="
            raise FormatError(path, place, f"expected ids [tokens, layers, {spec.top_k}] of {spec.name}, {found}")
    else:
        row = spec.num_hidden_layers * spec.top_k
        if len(raw) % (4 * row):
            raise FormatError(
                path,
                place,
                f"expected int32 ids of {count(spec.num_hidden_layers, 'layer')} and {count(spec.top_k, 'pick')} a "
                f"token ({4 * row} bytes) as in {spec.name}, found {count(len(raw), 'byte')}; give another model=",
            )
        array = np.frombuffer(raw, "<i4").reshape(-1, spec.num_hidden_layers, spec.top_k)
    array = array[:, moe_rows(path, place, array.shape[1], spec)]
    routes = expert_ids(path, place, array)
    if spec.top_k > 1:
        # engines start from a buffer of zeros: a row of zeros cannot be a pick of several experts
        routes[(routes == 0).all(axis=2)] = -1
    return routes


def _npy(path: str | Path, place: str, raw: bytes) -> Array:
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False))
    except BROKEN_NPY as error:
        raise FormatError(path, place, f"not a complete npy file ({one_line(error)})") from None
