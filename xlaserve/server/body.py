"""Reads a JSON request body: bounded size, strict JSON, an object at the top. Everything else is a 4xx that says why."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, model: type[Body], *, limit: int) -> Body:
    """The request's body as `model`.

    Args:
        request: whose body has not been read.
        model: the pydantic model of the endpoint.
        limit: most bytes to read.

    Raises:
        HTTPException: 413 over the limit, 415 for a content type other than JSON.
        InvalidRequestError: not JSON (RFC 8259: UTF-8, no NaN or Infinity, no lone surrogates), or not an object.
        pydantic.ValidationError: a field has the wrong type.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
        raise HTTPException(415, f"Send the header 'Content-Type: application/json', got {shown(media_type)}.")
    return model.model_validate(_parse(await _read(request, limit)))


async def _read(request: Request, limit: int) -> bytes:
    # The connection is closed after a 413, so that the rest of the body need not be received.
    refusal = HTTPException(413, f"The request body is larger than {limit} bytes, the limit of this server.", {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise refusal
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise refusal
        chunks.append(chunk)
    return b"".join(chunks)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequestError(f"The request body must be a JSON object, got {shown(body)}.")
    return body
