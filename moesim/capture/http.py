"""JSON over HTTP to a serving engine, with a deadline for a whole reply and errors that say what to do."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from moesim.base.errors import InputError
from moesim.base.units import count

_BLOCK: Final = 1 << 20
_AGAIN: Final = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""


class ServerError(InputError):
    """A server did not answer as expected.

    Parameters
    ----------
    problem
        What was wrong.
    again
        Whether the same request may succeed later.
    status
        HTTP status, 0 where there was none.
    """

    def __init__(self, problem: str, *, again: bool, status: int = 0) -> None:
        self.again, self.status = again, status
        super().__init__(problem)


class Server:
    """A server at an address.

    Parameters
    ----------
    url
        Such as ``http://localhost:8000``; a path of it goes before all paths.
    timeout_s
        Seconds in which a whole reply must have come.
    key
        Sent as ``Authorization: Bearer``.

    Raises
    ------
    InputError
        If it is no address.
    """

    def __init__(self, url: str, timeout_s: float = 600.0, key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            parts.port  # noqa: B018 - raises where it is no number
        except ValueError:
            parts = parts._replace(netloc="")
        if parts.scheme not in ("http", "https") or not parts.hostname or timeout_s <= 0:
            raise InputError(f"--url {url!r}: expected an address such as http://localhost:8000, and a timeout above 0")
        self.url = parts._replace(path=parts.path.rstrip("/"), query="", fragment="").geturl()
        self.timeout_s, self._key = timeout_s, key

    def post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Post JSON and return the JSON object of the reply; ServerError where there is none."""
        return self._object(path, self._send("POST", path, json.dumps(content).encode()))

    def get(self, path: str) -> dict[str, Any]:
        """Get a JSON object; ServerError where there is none."""
        return self._object(path, self._send("GET", path, None))

    def call(self, path: str) -> None:
        """Post nothing and take any reply that is no error."""
        self._send("POST", path, b"")

    def _object(self, path: str, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise ServerError(f"{self.url}{path}: expected JSON, found {_brief(body)}", again=True) from None
        if not isinstance(found, dict):
            raise ServerError(f"{self.url}{path}: expected an object, found {type(found).__name__}", again=False)
        return found

    def _send(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}{path}", data=body, headers=headers, method=method)
        until = time.monotonic() + self.timeout_s
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                return _read(reply, until)
        except urllib.error.HTTPError as error:
            with error:
                said = _brief(error.read(4096))
            problem = f"{self.url}{path}: refused with {error.code}: {said}"
            raise ServerError(problem, again=error.code in _AGAIN, status=error.code) from None
        except TimeoutError:
            problem = (
                f"{self.url}{path}: no whole reply in {self.timeout_s:g} s; raise --timeout or ask for fewer tokens"
            )
            raise ServerError(problem, again=True) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise ServerError(f"{self.url}: no connection in {self.timeout_s:g} s", again=True) from None
            raise ServerError(f"{self.url}: {_reason(error.reason)}; is the server running?", again=True) from None
        except http.client.IncompleteRead as error:
            found = f"broke off after {count(len(error.partial), 'byte')}"
            raise ServerError(f"{self.url}{path}: the reply {found}", again=True) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise ServerError(f"{self.url}{path}: {_reason(error)}", again=True) from None


def _read(reply: Any, until: float) -> bytes:
    """Read a reply; a server that sends a byte now and then does not hold it for ever."""
    blocks = []
    while block := reply.read1(_BLOCK):
        blocks.append(block)
        if time.monotonic() > until:
            raise TimeoutError
    body = b"".join(blocks)
    wanted = reply.headers.get("Content-Length")
    # read1 takes the end of the connection for the end of the reply
    if wanted is not None and wanted.isdigit() and len(body) < int(wanted):
        raise http.client.IncompleteRead(body, int(wanted) - len(body))
    return body


def _brief(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        while isinstance(found, dict) and ("error" in found or "message" in found or "detail" in found):
            found = found.get("error") or found.get("message") or found.get("detail")
        text = found if isinstance(found, str) else text
    except (ValueError, RecursionError):
        pass
    text = " ".join(text.split())
    return (text if len(text) <= 200 else text[:197] + "...") or "nothing"


def _reason(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
