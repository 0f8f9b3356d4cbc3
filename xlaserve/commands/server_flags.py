"""The server's options as command-line flags, and how they become `ServerSettings`. Names are vLLM's where it has the same option."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xlaserve.commands.chat_flags import add_chat_arguments, chat_settings
from xlaserve.commands.engine_flags import size

if TYPE_CHECKING:
    from xlaserve.server.settings import Cors, ServerSettings, Tls

_CLIENT_CERTS: dict[str, Literal["none", "optional", "required"]] = {
    "0": "none",
    "1": "optional",
    "2": "required",
    "none": "none",
    "optional": "optional",
    "required": "required",
}

_MAX_DIGITS = 9


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the server's flags."""
    _add_listening(parser.add_argument_group("server"))
    add_chat_arguments(parser)
    _add_security(parser.add_argument_group("security"))
    _add_logs(parser.add_argument_group("logs and traces"))


def server_settings(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> ServerSettings:
    """The parsed flags as settings.

    Raises:
        ConfigError: flags contradict each other, or a file that they name cannot be used.
    """
    from xlaserve.errors import ConfigError
    from xlaserve.server.auth import api_keys
    from xlaserve.server.settings import ServerSettings

    keys = api_keys(args.api_key, args.api_key_file, environ)
    if args.guard_metrics and not keys:
        raise ConfigError("--guard-metrics needs --api-key, --api-key-file or XLASERVE_API_KEY: there is no key to ask for.")
    if args.profile_dir is not None and not args.dev_endpoints:
        raise ConfigError("--profile-dir needs --dev-endpoints: profiles are started at POST /start_profile.")
    return ServerSettings(
        host=args.host,
        port=args.port,
        uds=args.uds,
        root_path=args.root_path,
        tls=_tls(args),
        cors=_cors(args),
        api_keys=keys,
        guard_metrics=args.guard_metrics,
        max_body_size=args.max_body_size,
        shutdown_timeout=args.shutdown_timeout,
        send_timeout=args.send_timeout,
        max_stored_responses=args.max_stored_responses,
        max_stored_bytes=args.max_stored_bytes,
        access_log=args.access_log,
        log_requests=args.enable_log_requests,
        max_log_len=args.max_log_len,
        otlp_traces_endpoint=args.otlp_traces_endpoint,
        page=args.page,
        chat=chat_settings(args),
        dev_endpoints=args.dev_endpoints,
        profile_dir=None if args.profile_dir is None else str(Path(args.profile_dir).expanduser().resolve()),
    )


def _add_listening(group: Any) -> None:
    host = "address to listen on; 0.0.0.0 serves other machines too (default: 127.0.0.1, this machine only)"
    group.add_argument("--host", default="127.0.0.1", help=host)
    group.add_argument("--port", type=_port, default=8000, help="TCP port; 0 takes a free one (default: 8000)")
    group.add_argument("--uds", metavar="PATH", help="unix socket to listen on instead; who may write to the file may connect")
    group.add_argument("--root-path", type=_root_path, default="", metavar="PATH", help="what a proxy in front takes off paths, as /llm")
    group.add_argument("--max-body-size", type=size, default=16 * 1024**2, metavar="BYTES", help="largest request body (default: 16M)")
    group.add_argument(
        "--shutdown-timeout", type=_seconds, default=0.0, metavar="S", help="seconds that running requests get when stopped (default: 0)"
    )
    group.add_argument(
        "--send-timeout", type=_seconds, default=60.0, metavar="S", help="seconds a client may leave its stream unread (default: 60)"
    )
    group.add_argument(
        "--max-stored-responses", type=_count, default=1024, metavar="N", help="responses of /v1/responses kept in memory (default: 1024)"
    )
    group.add_argument(
        "--max-stored-bytes", type=size, default=256 * 1024**2, metavar="BYTES", help="most memory that they take (default: 256M)"
    )
    group.add_argument("--no-ui", dest="page", action="store_false", help="no page at / for browsers")
    dev = "let clients pause the engine, put it to sleep, profile it, and read its trace: for trusted networks only"
    group.add_argument("--dev-endpoints", action="store_true", help=dev)
    group.add_argument("--profile-dir", metavar="DIR", help="where POST /start_profile writes (needs --dev-endpoints)")


def _add_security(group: Any) -> None:
    key = "ask for this key, or another one given so, everywhere but at probes; XLASERVE_API_KEY keeps it out of the process list"
    group.add_argument("--api-key", action="append", default=[], metavar="KEY", help=key)
    group.add_argument("--api-key-file", metavar="FILE", help="with a key on each line")
    group.add_argument("--guard-metrics", action="store_true", help="ask for a key at /metrics too")
    origins = "web origins whose pages may use the server, with commas or as a JSON array; * is every one (default: none)"
    group.add_argument("--allowed-origins", type=_texts, metavar="ORIGINS", help=origins)
    group.add_argument("--allowed-methods", type=_texts, metavar="METHODS", help="that such pages may use (default: GET,POST)")
    group.add_argument("--allowed-headers", type=_texts, metavar="NAMES", help="that such pages may send (default: *)")
    group.add_argument("--allow-credentials", action="store_true", help="let such pages send cookies and the like")
    group.add_argument("--ssl-certfile", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    group.add_argument("--ssl-keyfile", metavar="FILE", help="its key (PEM), where the certificate's file does not hold it")
    group.add_argument("--ssl-ca-certs", metavar="FILE", help="authorities whose clients' certificates are accepted (PEM)")
    certs = "certificates of clients: none, optional or required; 0, 1 and 2 are the same (default: none)"
    group.add_argument("--ssl-cert-reqs", type=_client_certs, default="none", metavar="WHICH", help=certs)


def _add_logs(group: Any) -> None:
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(default: info)")
    group.add_argument("--log-format", choices=("text", "json"), default="text", help="json is an object on each line (default: text)")
    access = "a line for each request that is answered (default: on)"
    group.add_argument("--access-log", action=argparse.BooleanOptionalAction, default=True, help=access)
    requests = "a line for each generation that begins and that ends, with its parameters and counts, without its prompt"
    group.add_argument("--enable-log-requests", action="store_true", help=requests)
    prompt = "characters of the prompt in these lines (default: 0, nothing of it)"
    group.add_argument("--max-log-len", type=_count, default=0, metavar="N", help=prompt)
    traces = "OpenTelemetry collector that gets a span of each generation, as http://localhost:4318/v1/traces (extra: otel)"
    group.add_argument("--otlp-traces-endpoint", metavar="URL", help=traces)


def _tls(args: argparse.Namespace) -> Tls | None:
    from xlaserve.errors import ConfigError
    from xlaserve.server.settings import Tls

    if args.ssl_certfile is None:
        if args.ssl_keyfile or args.ssl_ca_certs or args.ssl_cert_reqs != "none":
            raise ConfigError("--ssl-keyfile, --ssl-ca-certs and --ssl-cert-reqs need --ssl-certfile, the server's own certificate.")
        return None
    return Tls(certfile=args.ssl_certfile, keyfile=args.ssl_keyfile, ca_certs=args.ssl_ca_certs, client_certs=args.ssl_cert_reqs)


def _cors(args: argparse.Namespace) -> Cors | None:
    from xlaserve.errors import ConfigError
    from xlaserve.server.settings import Cors

    given = {"methods": args.allowed_methods, "headers": args.allowed_headers}
    named = {name: value for name, value in given.items() if value is not None}
    if args.allowed_origins is None:
        if named or args.allow_credentials:
            raise ConfigError("--allowed-methods, --allowed-headers and --allow-credentials need --allowed-origins.")
        return None
    return Cors(origins=args.allowed_origins, credentials=args.allow_credentials, **named)


def _texts(text: str) -> tuple[str, ...]:
    values: Any = text.split(",")
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except ValueError:
            values = None
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values) or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a list with commas nor a JSON array of strings")
    return tuple(value.strip() for value in values)


def _client_certs(text: str) -> Literal["none", "optional", "required"]:
    if text not in _CLIENT_CERTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of none, optional and required")
    return _CLIENT_CERTS[text]


def _root_path(text: str) -> str:
    if text and (not text.startswith("/") or not text.isascii()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path such as /llm")
    return text.rstrip("/")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
