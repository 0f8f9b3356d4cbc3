"""Endpoints that control the engine, there only with `--dev-endpoints`: pause, sleep, forget, look. Names and answers are vLLM's.

Parameters are in the query. One that is unknown is refused rather than ignored: it may ask for something that the engine cannot do.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.errors import EngineStateError, InvalidRequestError
from xlaserve.server.engine import Engine
from xlaserve.server.errors import shown
from xlaserve.server.state import state_of


async def pause(request: Request) -> Response:
    """POST /pause?mode=keep|abort|wait. With "wait" the answer comes when what runs has ended."""
    engine, given = _asked(request, "mode")
    mode: Any = given.get("mode", "keep")
    await engine.pause(mode)
    return _json({"status": "paused"})


async def resume(request: Request) -> Response:
    """POST /resume."""
    engine, _ = _asked(request)
    await engine.resume()
    return _json({"status": "resumed"})


async def is_paused(request: Request) -> Response:
    """GET /is_paused."""
    engine, _ = _asked(request)
    return _json({"is_paused": engine.is_paused})


async def sleep(request: Request) -> Response:
    """POST /sleep?level=1|2."""
    engine, given = _asked(request, "level")
    text = given.get("level", "1")
    level: Any = {"1": 1, "2": 2}.get(text, text)
    return _json({"level": level, "freed_bytes": await engine.sleep(level)})


async def wake_up(request: Request) -> Response:
    """POST /wake_up."""
    engine, _ = _asked(request)
    await engine.wake()
    return Response()


async def is_sleeping(request: Request) -> Response:
    """GET /is_sleeping."""
    engine, _ = _asked(request)
    return _json({"is_sleeping": engine.is_sleeping})


async def reset_prefix_cache(request: Request) -> Response:
    """POST /reset_prefix_cache."""
    engine, _ = _asked(request)
    await engine.reset_prefix_cache()
    return Response()


async def start_profile(request: Request) -> Response:
    """POST /start_profile: record what the engine and its device do, for --profile-dir."""
    engine, _ = _asked(request)
    await engine.start_profile(_profile_dir(request))
    return Response()


async def stop_profile(request: Request) -> Response:
    """POST /stop_profile: write it."""
    engine, _ = _asked(request)
    _profile_dir(request)
    await engine.stop_profile()
    return Response()


async def trace(request: Request) -> Response:
    """GET /trace: the last iterations, to be saved and opened in chrome://tracing or Perfetto."""
    engine, _ = _asked(request)
    content = await asyncio.to_thread(orjson.dumps, await engine.trace())
    return Response(content, media_type="application/json")


def _profile_dir(request: Request) -> str:
    # The operator's choice: clients name no files of the server's.
    directory = state_of(request).settings.profile_dir
    if directory is None:
        raise EngineStateError("Profiles need a directory: start the server with --profile-dir.")
    return directory


def _asked(request: Request, *names: str) -> tuple[Engine, dict[str, str]]:
    """The engine, and the query's parameters, of which there may be one of each name."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise InvalidRequestError(f"{shown(name)} is not a parameter of {request.url.path}.", field=name, value=value)
        if name in given:
            raise InvalidRequestError(f"{name} must be given once.", field=name, value=value)
        given[name] = value
    return state_of(request).require_engine(), given


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
