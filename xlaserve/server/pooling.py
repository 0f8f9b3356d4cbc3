"""The endpoints of embedding, classifying and ranking models: where none is served, a clear error and no guess."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.errors import UnsupportedByModelError
from xlaserve.server.state import state_of


async def refuse_pooling(request: Request) -> Response:
    """Raise UnsupportedByModelError, whatever the body says.

    It is a 400, and not vLLM's 501: OpenAI's clients send a request again after a 5xx, and routers stop using a server for a while after
    a 5xx or a 404, though others of its endpoints work.
    """
    name = state_of(request).require_engine().model_name
    raise UnsupportedByModelError(
        f"The model {name} generates text; {request.url.path} needs an embedding, classification or reranking model, "
        "and this server has none: use /v1/completions or /v1/chat/completions."
    )
