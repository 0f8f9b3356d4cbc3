"""Serve a model over HTTP, OpenAI-compatible.

The server listens at once and answers 503 until every graph is ready; GET /ready tells how far it is.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from typing import TYPE_CHECKING

from xlaserve.commands.chat_flags import add_chat_arguments, chat_settings
from xlaserve.commands.engine_flags import add_engine_arguments, engine_options, size

if TYPE_CHECKING:
    from xlaserve.server.engine import Engine

SUMMARY = "serve a model over HTTP, OpenAI-compatible"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add_engine_arguments(parser)
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves other machines too (default: 127.0.0.1, this machine only)",
    )
    group.add_argument("--port", type=_port, default=8000, help="TCP port; 0 takes a free one (default: 8000)")
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
    dev = "let clients pause the engine, put it to sleep, and read its trace: for trusted networks only"
    group.add_argument("--dev-endpoints", action="store_true", help=dev)
    group.add_argument("--no-ui", dest="page", action="store_false", help="no page at / for browsers")
    add_chat_arguments(parser)
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(default: info)")


def run(args: argparse.Namespace) -> int:
    """Serves until a signal; see `xlaserve.server.lifecycle.serve`."""
    from xlaserve.server.lifecycle import Progress, address, bind, serve
    from xlaserve.server.settings import ServerSettings

    _log_to_stderr(args.log_level)
    settings = ServerSettings(
        host=args.host,
        port=args.port,
        max_body_size=args.max_body_size,
        shutdown_timeout=args.shutdown_timeout,
        send_timeout=args.send_timeout,
        max_stored_responses=args.max_stored_responses,
        max_stored_bytes=args.max_stored_bytes,
        page=args.page,
        chat=chat_settings(args),
        dev_endpoints=args.dev_endpoints,
    )
    listener = bind(settings)
    url = address(listener)
    _say(f"xlaserve: listening on {url}, loading {args.model or 'the demo model'}; {url}/ready tells how far it is")

    async def start(progress: Progress) -> Engine:
        from xlaserve.engine.config import EngineConfig
        from xlaserve.engine.engine_process import start_engine

        return await start_engine(EngineConfig(model=args.model, **engine_options(args)), progress)

    return serve(listener, settings, start, lambda engine: _say(_welcome(engine, url)), _say)


def _welcome(engine: Engine, url: str) -> str:
    body = f'{{"model": "{engine.model_name}", "messages": [{{"role": "user", "content": "Tell me a joke."}}], "max_tokens": 100}}'
    return (
        f"\nServing {engine.model_name} at {url}\nTry:\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d '{body}'"
    )


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("xlaserve").setLevel(level.upper())
    if level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.DEBUG)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a server serves on where nobody reads what it says any more
        print(line, flush=True)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
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
