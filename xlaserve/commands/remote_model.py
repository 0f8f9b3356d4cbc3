"""A model behind any OpenAI-compatible server, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import urlsplit

from xlaserve.errors import ConfigError, EngineDeadError, InvalidRequestError, XlaserveError

TIMEOUT_SECONDS = 600.0


class RemoteModel:
    """One server.

    Args:
        url: its address, with or without /v1.
        model: the id to ask for; None takes the first one that the server lists.
        api_key: sent with every request; None sends none.

    Raises:
        ConfigError: the URL is not one.
        XlaserveError: the server cannot be reached or has no model.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"--url must be an address such as http://localhost:8000, got {url!r}.")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._url = url
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._model = model or self._first_model()

    def answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Generator[str]:
        """The pieces of the answer; closing the generator closes the connection, which stops the generation.

        Raises:
            InvalidRequestError: the server refuses the request.
            XlaserveError: the server cannot be reached, or fails.
        """
        body = {"messages": messages, **options}
        return self._pieces("/v1/chat/completions", body, lambda choice: choice["delta"].get("content"))

    def complete(self, prompt: str, options: dict[str, Any]) -> Generator[str]:
        """The pieces of what follows a text. Errors are those of `answer`."""
        return self._pieces("/v1/completions", {"prompt": prompt, **options}, lambda choice: choice["text"])

    def close(self) -> None:
        """Nothing stays open between answers."""

    def _pieces(self, path: str, body: dict[str, Any], piece_of: Callable[[dict[str, Any]], str | None]) -> Generator[str]:
        connection = self._connect()
        try:
            response = self._send(connection, "POST", path, json.dumps({"model": self._model, "stream": True, **body}))
            for event in _events(response):
                if "error" in event:
                    raise XlaserveError(f"the server failed: {event['error'].get('message')}")
                for choice in event.get("choices", []):
                    if piece := piece_of(choice):
                        yield piece
        except (OSError, http.client.HTTPException) as error:
            raise XlaserveError(f"lost the connection to {self._url}: {error}") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=TIMEOUT_SECONDS)

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        try:
            connection.request(method, self._base + path, body, self._headers | ({"Content-Type": "application/json"} if body else {}))
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise XlaserveError(
                f"cannot reach {self._url}: {error}. Is a server running there? Start one with `xlaserve serve`."
            ) from error
        if response.status == 200:
            return response
        message = f"{self._url} answered {response.status} {response.reason}{_error_message(response.read())}"
        if response.status == 400:
            raise InvalidRequestError(message)
        raise EngineDeadError(message) if response.status == 500 else XlaserveError(message)

    def _first_model(self) -> str:
        connection = self._connect()
        try:
            return json.loads(self._send(connection, "GET", "/v1/models").read())["data"][0]["id"]
        except (ValueError, LookupError, TypeError) as error:
            raise XlaserveError(f"{self._url} does not list its models as an OpenAI-compatible server does.") from error
        finally:
            connection.close()


def _events(response: http.client.HTTPResponse) -> Generator[dict[str, Any]]:
    for line in response:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if line.startswith(b"data:"):
            yield json.loads(data)


def _error_message(body: bytes) -> str:
    try:
        return f": {json.loads(body)['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return ""
