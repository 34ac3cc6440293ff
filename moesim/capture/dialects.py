"""What vLLM and SGLang want to be asked, and where they say which model they serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moesim.base.errors import InputError
from moesim.capture.http import Server, ServerError
from moesim.capture.prompts import Prompt


@dataclass(frozen=True)
class Asked:
    """How prompts are asked.

    Parameters
    ----------
    new_tokens
        Most tokens of an answer, at least 1.
    temperature
        Of sampling.
    chat
        Whether texts go to the chat endpoint; messages always do.
    served
        Name under which the server knows the model; None asks the server.
    """

    new_tokens: int = 128
    temperature: float = 1.0
    chat: bool = False
    served: str | None = None

    def __post_init__(self) -> None:
        if self.new_tokens < 1 or self.temperature < 0:
            raise InputError(
                f"capture: expected new tokens from 1 and a temperature from 0, got {self.new_tokens} and "
                f"{self.temperature:g}"
            )


class Dialect(Protocol):
    """One engine."""

    name: str
    start: str

    def served(self, server: Server) -> tuple[str, str]:
        """Return the name of the served model, and its folder or id."""

    def request(self, prompt: Prompt, asked: Asked, model: str) -> tuple[str, dict[str, Any]]:
        """Return path and content of the request for a prompt and its routed experts."""


class VLLM:
    """vLLM: every choice of a reply has ``routed_experts`` when the server was started so."""

    name = "vLLM"
    start = "VLLM_USE_V2_MODEL_RUNNER=1 vllm serve MODEL --enable-return-routed-experts"

    def served(self, server: Server) -> tuple[str, str]:
        """Return what ``/v1/models`` lists first."""
        listed = server.get("/v1/models").get("data")
        first = listed[0] if isinstance(listed, list) and listed else None
        if not isinstance(first, Mapping) or not isinstance(first.get("id"), str):
            raise ServerError(f"{server.url}/v1/models: expected a served model, found none", again=False)
        root = first.get("root")
        return first["id"], root if isinstance(root, str) else first["id"]

    def request(self, prompt: Prompt, asked: Asked, model: str) -> tuple[str, dict[str, Any]]:
        """Return a completion, or a chat completion."""
        common = {"model": model, "max_tokens": asked.new_tokens, "temperature": asked.temperature}
        if (messages := _messages(prompt, asked)) is not None:
            return "/v1/chat/completions", common | {"messages": messages}
        return "/v1/completions", common | {"prompt": prompt.text if prompt.tokens is None else list(prompt.tokens)}


class SGLang:
    """SGLang: asked for by each request, given in ``meta_info`` or, in the OpenAI API, in ``sglext``."""

    name = "SGLang"
    start = "python -m sglang.launch_server --model-path MODEL --enable-return-routed-experts"

    def served(self, server: Server) -> tuple[str, str]:
        """Return what ``/model_info`` tells, or ``/get_model_info`` of earlier versions."""
        try:
            found = server.get("/model_info")
        except ServerError as error:
            if error.status != 404:
                raise
            found = server.get("/get_model_info")
        path = found.get("model_path")
        if not isinstance(path, str):
            raise ServerError(f"{server.url}/model_info: expected model_path, found none", again=False)
        served = found.get("served_model_name")
        return served if isinstance(served, str) else path, path

    def request(self, prompt: Prompt, asked: Asked, model: str) -> tuple[str, dict[str, Any]]:
        """Return a request of the native API, or a chat completion."""
        if (messages := _messages(prompt, asked)) is not None:
            return "/v1/chat/completions", {
                "model": model, "messages": messages, "max_tokens": asked.new_tokens,
                "temperature": asked.temperature, "return_routed_experts": True,
            }  # fmt: skip
        sampling = {"max_new_tokens": asked.new_tokens, "temperature": asked.temperature}
        what = {"text": prompt.text} if prompt.tokens is None else {"input_ids": list(prompt.tokens)}
        return "/generate", what | {"sampling_params": sampling, "return_routed_experts": True}


def _messages(prompt: Prompt, asked: Asked) -> list[Mapping[str, str]] | None:
    if prompt.messages is not None:
        return list(prompt.messages)
    if not asked.chat:
        return None
    if prompt.text is None:
        raise InputError(f"prompt {prompt.number}: token ids cannot be asked as a chat; leave --chat out")
    return [{"role": "user", "content": prompt.text}]
