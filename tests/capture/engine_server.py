"""A small HTTP server that answers as vLLM and SGLang do, byte for byte in what concerns routed experts.

vLLM: ``routed_experts`` of every choice is base64 of a .npy file [tokens - 1, decoder layers, top_k], uint8 where there
are at most 256 experts. SGLang: ``meta_info.routed_experts`` (``sglext`` of its OpenAI API) is base64 of raw
little-endian int32 of that shape. Rows of dense layers are zeros. The recorder writes torch files with the names and
keys of SGLang's.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from moesim.spec import ModelSpec


def routes_of(spec: ModelSpec, prompt: Any, tokens: int) -> np.ndarray:
    """Return what the model routes for a prompt, int64 [tokens - 1, MoE layers, top_k]; the same every time."""
    seed = int.from_bytes(hashlib.sha256(json.dumps(prompt).encode()).digest()[:4], "little")
    draws = np.random.default_rng(seed).random((tokens - 1, spec.layers, spec.experts))
    return draws.argsort(axis=2)[:, :, : spec.top_k]


def padded(spec: ModelSpec, routes: np.ndarray) -> np.ndarray:
    """Return rows for every decoder layer, zeros where it is dense."""
    whole = np.zeros((len(routes), spec.num_hidden_layers, spec.top_k), np.int64)
    whole[:, list(spec.layer_ids)] = routes
    return whole


def npy(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass
class Engine:
    """What the server does, and what it saw.

    Parameters
    ----------
    kind
        ``"vllm"`` or ``"sglang"``.
    fault
        Called with path and content of each request for an answer; returns None, or an action of `_Handler.FAULTS`.
    """

    kind: str
    spec: ModelSpec
    fault: Callable[[str, dict], str | None] = lambda path, content: None
    folder: Path | None = None
    mode: str | None = None
    capture: bool = True
    model_path: str = "org/some-model"
    seen: list[tuple[str, dict]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    live: list[dict] = field(default_factory=list)
    busiest: int = 0
    pause_s: float = 0.0
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prompt_of(self, content: dict) -> Any:
        return next(content[key] for key in ("prompt", "text", "input_ids", "messages") if content.get(key) is not None)

    def lengths(self, content: dict) -> tuple[int, int]:
        """Tokens of prompt and answer: a token a word."""
        prompt = self.prompt_of(content)
        words = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], int) else len(str(prompt).split())
        most = content.get("max_tokens") or content["sampling_params"]["max_new_tokens"]
        return words, min(most, 3 + words % 3)

    def answer(self, path: str, content: dict) -> dict:
        prompt, answer = self.lengths(content)
        whole = padded(self.spec, routes_of(self.spec, self.prompt_of(content), prompt + answer))
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        chat = "chat" in path
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": "so it is"}} if chat else {"text": " so it is"}
        if self.kind == "vllm":
            if self.capture:
                choice["routed_experts"] = npy(whole.astype(np.uint8 if self.spec.experts <= 256 else np.uint16))
            return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice], "usage": usage}
        encoded = base64.b64encode(whole.astype("<i4").tobytes()).decode()
        asked = self.capture and content.get("return_routed_experts")
        if chat:
            more = {"sglext": {"routed_experts": encoded}} if asked else {}
            return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage} | more
        meta = {"id": "1", "finish_reason": {"type": "length", "length": answer}} | usage
        return {"text": " so it is", "meta_info": meta | ({"routed_experts": encoded} if asked else {})}

    def dump(self) -> None:
        """Write what SGLang's recorder would in its mode."""
        import torch

        spec, ranks = self.spec, 2
        prompts = [self.prompt_of(content) for _, content in self.seen]
        routes = [padded(spec, routes_of(spec, prompt, sum(self.lengths(c)))) for prompt, (_, c) in zip(
            prompts, self.seen, strict=True)]  # fmt: skip
        counts = np.zeros((spec.num_hidden_layers, spec.experts), np.int64)
        for part in routes:
            for layer in spec.layer_ids:
                counts[layer] += np.bincount(part[:, layer].ravel(), minlength=spec.experts)
        identity = torch.arange(spec.experts).repeat(spec.num_hidden_layers, 1)
        now = time.time()
        if self.mode == "stat":
            slots = np.zeros((4, *counts.shape), np.int32)
            slots[1] = counts
            content = {"rank": 0, "logical_count": torch.tensor(slots), "average_utilization_rate_over_window": None}
            torch.save(content, self.folder / f"expert_distribution_recorder_{now}.pt")
        for rank in range(ranks if self.mode == "per_pass" else 0):
            share = counts // 2 + (counts % 2 if rank == 0 else 0)
            record = {
                "forward_pass_id": 3, "rank": rank, "gatherer_key": "primary",
                "global_physical_count": torch.tensor(share, dtype=torch.int32),
            }  # fmt: skip
            content = {"records": [record], "last_physical_to_logical_map": identity}
            torch.save(content, self.folder / f"expert_distribution_recorder_{now + rank / 1000}_{rank}.pt")


class _Handler(BaseHTTPRequestHandler):
    engine: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.engine.kind == "vllm":
            self._json(200, {"object": "list", "data": [{"id": "served", "root": self.engine.model_path}]})
        elif self.path == "/model_info" and self.engine.kind == "sglang":
            self._json(200, {"model_path": self.engine.model_path, "is_generation": True})
        else:
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        engine = self.engine
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("_expert_distribution_record"):
            self._record()
            return
        known = {
            "vllm": ("/v1/completions", "/v1/chat/completions"),
            "sglang": ("/generate", "/v1/completions", "/v1/chat/completions"),
        }[engine.kind]
        if self.path not in known:
            self._json(404, {"detail": "Not Found"})
            return
        content = json.loads(body)
        with engine._lock:
            engine._busy += 1
            engine.busiest = max(engine.busiest, engine._busy)
            engine.keys.append(self.headers.get("Authorization"))
        time.sleep(engine.pause_s)
        fault = engine.fault(self.path, content)
        # no longer busy before the reply leaves: whoever reads it may ask again at once
        with engine._lock:
            engine._busy -= 1
            if fault is None:
                engine.seen.append((self.path, content))
        if fault is None:
            self._json(200, engine.answer(self.path, content))
        else:
            self._fail(fault, content)

    def _record(self) -> None:
        engine = self.engine
        if engine.kind != "sglang" or engine.mode is None:
            self._json(500, {"detail": "Please set ServerArgs.expert_distribution_recorder_mode"})
            return
        verb = self.path.strip("/").split("_")[0]
        engine.calls.append(verb)
        if verb == "start":
            # what others ask while it runs
            engine.seen[:] = [("/generate", content) for content in engine.live]
        if verb == "dump":
            engine.dump()
        said = {"start": "Start recording", "stop": "Stop recording", "dump": "Dump"}[verb].encode()
        self._bytes(200, said + b" the expert distribution.\n", "text/plain")

    def _json(self, status: int, content: object) -> None:
        self._bytes(status, json.dumps(content).encode(), "application/json")

    def _bytes(self, status: int, body: bytes, kind: str, claim: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if claim is None else claim))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, fault: str, content: dict) -> None:
        """Fail as servers and networks do."""
        engine = self.engine
        answer = engine.answer(self.path, content)
        body = json.dumps(answer).encode()
        if fault == "slow":
            time.sleep(1.5)
            self._json(200, answer)
        elif fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body[:40]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
        elif fault == "partial":
            self._bytes(200, body[: len(body) // 2], "application/json", claim=len(body))
            self.close_connection = True
        elif fault == "reset":
            self.close_connection = True
            self.connection.close()
        elif fault == "garbage":
            self._bytes(200, b"<html>proxy error</html>", "text/html")
        elif fault == "too-long":
            self._json(400, {"error": {"message": "maximum context length is 8 tokens", "code": 400}})
        elif fault == "busy":
            self._json(503, {"error": {"message": "overloaded"}})
        elif fault == "unauthorized":
            self._json(401, {"error": "Unauthorized"})
        elif fault in ("short", "wide", "id", "base64", "number"):
            self._json(200, damaged(engine, answer, fault))
        else:
            raise AssertionError(fault)


def damaged(engine: Engine, answer: dict, fault: str) -> dict:
    """Return an answer whose routed experts are wrong."""
    spec = engine.spec
    usage = answer.get("usage") or answer["meta_info"]
    T = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    whole = padded(spec, routes_of(spec, "x", T + 1))
    if fault == "short":
        whole = whole[: T // 2]
    elif fault == "wide":
        whole = np.concatenate([whole, whole[:, :, :1]], axis=2)
    elif fault == "id":
        whole[0, spec.layer_ids[0], 0] = spec.experts
    value: object = npy(whole.astype(np.uint8)) if engine.kind == "vllm" else (
        base64.b64encode(whole.astype("<i4").tobytes()).decode())  # fmt: skip
    value = {"base64": "!not base64!", "number": 7}.get(fault, value)
    if engine.kind == "vllm":
        answer["choices"][0]["routed_experts"] = value
    else:
        answer["meta_info"]["routed_experts"] = value
    return answer


class running:  # noqa: N801 - reads as a verb
    """``with running(engine) as url``."""

    def __init__(self, engine: Engine) -> None:
        handler = type("Handler", (_Handler,), {"engine": engine})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that go away

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
