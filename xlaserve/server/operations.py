"""The endpoints for operators, probes and clients that look around: models, health, readiness, version, metrics."""

from __future__ import annotations

from dataclasses import asdict

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from xlaserve import __version__
from xlaserve.server.engine import Engine
from xlaserve.server.state import ServerState, state_of


async def list_models(request: Request) -> Response:
    """GET /v1/models."""
    state = state_of(request)
    return _json({"object": "list", "data": [_card(state.require_engine(), state)]})


async def get_model(request: Request) -> Response:
    """GET /v1/models/{model}; ids may hold slashes."""
    state = state_of(request)
    engine = state.require_engine()
    state.check_model(request.path_params["model"])
    return _json(_card(engine, state))


async def health(request: Request) -> Response:
    """GET /health: 200 while the process can serve or is on its way to; 503 when the engine is dead and only a restart helps."""
    return Response(status_code=503 if state_of(request).phase == "dead" else 200)


async def ready(request: Request) -> Response:
    """GET /ready: 200 when requests are served; else 503 with the progress of loading."""
    state = state_of(request)
    return _json(state.readiness(), 200 if state.phase == "ready" else 503)


async def version(request: Request) -> Response:
    """GET /version."""
    return _json({"version": __version__})


async def engine(request: Request) -> Response:
    """GET /engine: statistics, who holds which slot, who waits, and how each graph is used. Prompts and answers are not in it."""
    engine = state_of(request).require_engine()
    report = await engine.report()
    content = {
        **report._asdict(),
        **{name: [entry._asdict() for entry in getattr(report, name)] for name in ("running", "waiting", "graphs")},
    }
    return _json({"stats": asdict(engine.stats()), "report": content})


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format."""
    return Response(state_of(request).metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _card(engine: Engine, state: ServerState) -> dict[str, object]:
    return {
        "id": engine.model_name,
        "object": "model",
        "created": state.created,
        "owned_by": "xlaserve",
        "root": engine.model_name,
        "parent": None,
        "max_model_len": engine.max_model_len,
        # What vLLM's clients look for; this server knows no owners and nothing to fine-tune.
        "permission": [],
    }


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")
