"""How the server listens and what it lets clients do: one frozen object, parsed once from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ContentFormat = Literal["auto", "string", "openai"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """How conversations are rendered and answers read.

    Args:
        tool_call_parser: name of the format in which the model calls tools (`server.parsing.formats`); "auto" tells it from the model's
            chat template, "none" reads no calls.
        reasoning_parser: the same for its reasoning.
        template: source of a chat template in place of the model's.
        content_format: whether templates get a message's content as text or as a list of parts: "auto" as they expect and the client
            sent it, "string" always text, "openai" always parts.
        trust_request_template: whether requests may bring their own chat template.
    """

    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    template: str | None = None
    content_format: ContentFormat = "auto"
    trust_request_template: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Options of the HTTP side; the engine has its own.

    Args:
        host: address to listen on; the loopback address serves this machine only.
        port: TCP port; 0 lets the system choose a free one.
        max_body_size: bytes of the largest request body that is read.
        shutdown_timeout: seconds that running requests get to finish after the first stop signal; 0 aborts them at once.
        send_timeout: seconds that a streaming client may leave its connection unread before its request is aborted.
        max_stored_responses: most finished responses of /v1/responses that are kept to be fetched or continued; 0 keeps none.
        max_stored_bytes: most bytes that they hold together.
        page: whether browsers get a page at `/`.
        chat: how conversations are rendered and answers read.
        dev_endpoints: whether clients may pause the engine, put it to sleep, and look into it.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_size: int = 16 * 1024 * 1024
    shutdown_timeout: float = 0.0
    send_timeout: float = 60.0
    max_stored_responses: int = 1024
    max_stored_bytes: int = 256 * 1024 * 1024
    page: bool = True
    chat: ChatSettings = field(default_factory=ChatSettings)
    dev_endpoints: bool = False
