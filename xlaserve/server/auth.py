"""Who may use the server: API keys, compared in constant time, before anything else of a request is looked at.

Everything asks for a key but what its route says is open, which are the probes, and the page's files.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from xlaserve.errors import ConfigError
from xlaserve.server.errors import Problem, answer_problem, path_of

ENVIRONMENT = "XLASERVE_API_KEY"


class ApiKeys:
    """ASGI middleware: requests without one of the keys get a 401.

    A key comes as `Authorization: Bearer KEY`, as OpenAI's clients send it, or as `X-Api-Key: KEY`, as Anthropic's do.

    Args:
        app: what is guarded.
        keys: at least one.
        open_paths: served without a key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: frozenset[str]) -> None:
        self._app = app
        # Digests have one length, so that the comparison does not tell that of a key either.
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) in self._open_paths:
            await self._app(scope, receive, send)
            return
        given = _given(Headers(scope=scope))
        # Every key is compared with every one given, whatever has matched before.
        matches = [hmac.compare_digest(_digest(key), digest) for key in given for digest in self._digests]
        if any(matches):
            await self._app(scope, receive, send)
        else:
            await answer_problem(_refusal(bool(given)), path_of(scope))(scope, receive, send)


def api_keys(given: Sequence[str], file: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The keys to ask for: those of the command line and of the file; where neither is named, that of `XLASERVE_API_KEY`.

    Args:
        given: on the command line.
        file: with a key on each line; blank lines and those that begin with # are left out.
        environ: the environment.

    Raises:
        ConfigError: the file cannot be read or names no key, or a key is none that a header can carry. A variable that is set and
            empty is an error too: it would leave a server open that somebody meant to guard.
    """
    keys = list(given)
    if file is not None:
        try:
            lines = [line.strip() for line in Path(file).expanduser().read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}.") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigError(f"--api-key-file {file} names no key: write one on each line.")
        keys += found
    if not keys and ENVIRONMENT in environ:
        keys = [environ[ENVIRONMENT]]
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"API keys must be printable ASCII without spaces, and not empty (--api-key, --api-key-file, {ENVIRONMENT}).")
    return tuple(dict.fromkeys(keys))


def _given(headers: Headers) -> list[bytes]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    found = [token.strip()] if scheme.lower() == "bearer" else []
    found += [headers["x-api-key"]] if "x-api-key" in headers else []
    return [key.encode("latin-1", "replace") for key in found if key]


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _refusal(wrong: bool) -> Problem:
    """RFC 6750: the challenge names an error only where a token was sent."""
    if wrong:
        challenge, message = 'Bearer error="invalid_token"', "The API key is not one of this server's."
    else:
        challenge, message = "Bearer", "This server asks for an API key: send the header 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
    return Problem(401, message, "authentication_error", None, "invalid_api_key", {"WWW-Authenticate": challenge})
