"""Serve a model over HTTP, OpenAI-compatible.

The server listens at once and answers 503 until every graph is ready; GET /ready tells how far it is.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from typing import TYPE_CHECKING

from xlaserve.commands.engine_flags import add_engine_arguments, engine_options
from xlaserve.commands.server_flags import add_server_arguments, server_settings

if TYPE_CHECKING:
    from xlaserve.engine.engine_spawn import Spawned
    from xlaserve.server.engine import Engine

SUMMARY = "serve a model over HTTP, OpenAI-compatible"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add_engine_arguments(parser)
    add_server_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until a signal; see `xlaserve.server.lifecycle.serve`."""
    from xlaserve.engine.engine_spawn import spawn_engine

    with spawn_engine() as spawned:  # first of all: it imports JAX while this process imports the server
        return _serve(args, spawned)


def _serve(args: argparse.Namespace, spawned: Spawned) -> int:
    from xlaserve.engine.log_format import log_to_stderr
    from xlaserve.server.lifecycle import Progress, serve
    from xlaserve.server.listener import address, bind

    log_to_stderr(getattr(logging, args.log_level.upper()), args.log_format)
    if args.log_level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.DEBUG)
    # Whoever reads JSON lines reads all of them: what a person would be told is in the log then.
    say = log.info if args.log_format == "json" else _say
    settings = server_settings(args)
    listener = bind(settings)
    url = address(listener, tls=settings.tls is not None)
    say(f"xlaserve: listening on {url}, loading {args.model or 'the demo model'}; GET /ready tells how far it is")

    async def start(progress: Progress) -> Engine:
        from xlaserve.engine.config import EngineConfig
        from xlaserve.engine.engine_process import start_engine

        return await start_engine(EngineConfig(model=args.model, **engine_options(args)), progress, spawned)

    return serve(listener, settings, start, lambda engine: say(_welcome(engine, url, guarded=bool(settings.api_keys))), say)


def _welcome(engine: Engine, url: str, *, guarded: bool) -> str:
    body = f'{{"model": "{engine.model_name}", "messages": [{{"role": "user", "content": "Tell me a joke."}}], "max_tokens": 100}}'
    socket, base = (f" --unix-socket {url.removeprefix('unix:')}", "http://localhost") if url.startswith("unix:") else ("", url)
    key = " -H 'Authorization: Bearer '$XLASERVE_API_KEY" if guarded else ""
    return (
        f"\nServing {engine.model_name} at {url}\nTry:\n"
        f"  curl{socket} {base}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n    -d '{body}'"
    )


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a server serves on where nobody reads what it says any more
        print(line, flush=True)
