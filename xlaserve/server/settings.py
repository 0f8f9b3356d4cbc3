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
class Tls:
    """What the server shows to clients and asks of them, all in PEM files.

    Args:
        certfile: the certificate, with those that lead to its authority.
        keyfile: its key; None where `certfile` holds it too.
        ca_certs: authorities whose clients' certificates are accepted.
        client_certs: whether clients must show a certificate.
    """

    certfile: str
    keyfile: str | None = None
    ca_certs: str | None = None
    client_certs: Literal["none", "optional", "required"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """What browsers let pages of other origins do here (https://fetch.spec.whatwg.org/#http-cors-protocol).

    Args:
        origins: such as "https://example.org"; "*" is every one.
        methods: that they may use.
        headers: that they may send; "*" is every one.
        credentials: whether cookies and the like are sent along.
    """

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("GET", "POST")
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Options of the HTTP side; the engine has its own.

    Args:
        host: address to listen on; the loopback address serves this machine only.
        port: TCP port; 0 lets the system choose a free one.
        uds: path of a unix socket to listen on instead.
        root_path: what a proxy in front has taken off the beginning of paths.
        tls: None serves plain HTTP.
        cors: None lets browsers keep other origins out.
        api_keys: any of which a request must bring; none asks for none.
        guard_metrics: whether `/metrics` asks for a key too.
        max_body_size: bytes of the largest request body that is read.
        shutdown_timeout: seconds that running requests get to finish after the first stop signal; 0 aborts them at once.
        send_timeout: seconds that a streaming client may leave its connection unread before its request is aborted.
        max_stored_responses: most finished responses of /v1/responses that are kept to be fetched or continued; 0 keeps none.
        max_stored_bytes: most bytes that they hold together.
        access_log: whether every answered request is a line in the log.
        log_requests: whether every generation is a line in the log, with its parameters.
        max_log_len: characters of the prompt in such a line.
        otlp_traces_endpoint: URL of an OpenTelemetry collector that gets a span of every generation.
        page: whether browsers get a page at `/`.
        chat: how conversations are rendered and answers read.
        dev_endpoints: whether clients may pause the engine, put it to sleep, and look into it.
        profile_dir: where profiles go that clients may start with `dev_endpoints`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    root_path: str = ""
    tls: Tls | None = None
    cors: Cors | None = None
    api_keys: tuple[str, ...] = ()
    guard_metrics: bool = False
    max_body_size: int = 16 * 1024 * 1024
    shutdown_timeout: float = 0.0
    send_timeout: float = 60.0
    max_stored_responses: int = 1024
    max_stored_bytes: int = 256 * 1024 * 1024
    access_log: bool = True
    log_requests: bool = False
    max_log_len: int = 0
    otlp_traces_endpoint: str | None = None
    page: bool = True
    chat: ChatSettings = field(default_factory=ChatSettings)
    dev_endpoints: bool = False
    profile_dir: str | None = None
