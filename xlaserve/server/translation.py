"""What endpoints in other vocabularies share: their bodies become chat completion requests, and errors name what the client wrote."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import ContextLengthError
from xlaserve.server.protocol import ChatCompletionRequest

log = logging.getLogger(__name__)

Names = Sequence[tuple[re.Pattern[str], str]]
"""What the client calls a field of the chat request: the first pattern that fits counts, and is replaced."""

_QUOTED = re.compile(r"`([\w.]+)`")
# vLLM's further fields that these endpoints take under the same names as chat completions do.
_SHARED = frozenset(
    {
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template_kwargs",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "min_p",
        "min_tokens",
        "presence_penalty",
        "priority",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "stop_token_ids",
        "structured_outputs",
        "thinking_token_budget",
        "top_k",
    }
)


def shared_fields(body: BaseModel, *, known: frozenset[str]) -> dict[str, Any]:
    """The undeclared fields of a body that chat completions know too. Others but those in `known` are named in the debug log."""
    extra = body.model_extra or {}
    unknown = sorted(name for name, value in extra.items() if value is not None and name not in _SHARED and name not in known)
    if unknown and log.isEnabledFor(logging.DEBUG):
        log.debug("request fields ignored because they are unknown: %.500s", ", ".join(unknown))
    return {name: value for name, value in extra.items() if name in _SHARED}


def chat_request(fields: Mapping[str, Any]) -> ChatCompletionRequest:
    """The chat completion request that has these fields; None stands for a field left out.

    Raises:
        pydantic.ValidationError: a field has the wrong type.
    """
    return ChatCompletionRequest.model_validate({name: value for name, value in fields.items() if value is not None})


def as_json(value: object, field: str) -> bytes:
    """A value of the request as JSON again.

    Args:
        value: as it was read.
        field: the path to it.

    Raises:
        InvalidRequestError: it is nested more deeply than can be written.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise InvalidRequestError(f"`{field}` is nested too deeply.", field=field) from error


@contextmanager
def in_terms_of(names: Names) -> Generator[None]:
    """Errors about fields of the chat request that are raised inside become errors about what the client wrote.

    Args:
        names: of the client's fields.
    """
    try:
        yield
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        field = _renamed(path, names)
        if field == path:
            raise
        raise InvalidRequestError(f"`{field}`: {first['msg']}.", field=field, value=first["input"]) from error
    except InvalidRequestError as error:
        message = _QUOTED.sub(lambda found: f"`{_renamed(found[1], names)}`", str(error))
        field = None if error.field is None else _renamed(error.field, names)
        if error.field is not None and message.startswith(f"{error.field} "):
            message = f"{field}{message.removeprefix(error.field)}"
        if (message, field) == (str(error), error.field):
            raise
        kind = ContextLengthError if isinstance(error, ContextLengthError) else InvalidRequestError
        raise kind(message, field=field, value=error.value) from error


def _renamed(field: str, names: Names) -> str:
    for pattern, replacement in names:
        renamed, count = pattern.subn(replacement, field)
        if count:
            return renamed
    return field
