"""From request fields to `SamplingParams`. What a request leaves open comes from the checkpoint's generation config, as in vLLM."""

from __future__ import annotations

from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.params import SamplingParams
from xlaserve.server.engine import Engine
from xlaserve.server.errors import ContextLengthError
from xlaserve.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest

COMPLETION_MAX_TOKENS = 16
_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p")
_AS_GIVEN = (
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "priority",
    "cache_salt",
)


def sampling_params(request: GenerationRequest, engine: Engine, prompt_tokens: int, prompt_field: str) -> SamplingParams:
    """The parameters for one prompt of the request.

    Args:
        request: the parsed body.
        engine: whose defaults and context length count.
        prompt_tokens: length of the prompt; leaves room for at least one token.
        prompt_field: what the client calls the prompt.

    Raises:
        InvalidRequestError: a value is out of range.
        ContextLengthError: prompt and `max_tokens` together do not fit the model.
    """
    room = engine.max_model_len - prompt_tokens
    asked, field = _asked_tokens(request)
    if asked is not None and asked > room:
        raise ContextLengthError(
            f"This model's maximum context length is {engine.max_model_len} tokens, but the request needs {prompt_tokens + asked}: "
            f"{prompt_tokens} in `{prompt_field}` and `{field}`={asked}. Shorten the prompt or ask for at most {room} tokens.",
            field=field,
            value=asked,
        )
    defaults = engine.default_sampling
    values: dict[str, Any] = {name: defaults[name] for name in _FROM_CHECKPOINT if name in defaults}
    values |= {name: value for name in (*_FROM_CHECKPOINT, *_AS_GIVEN) if (value := getattr(request, name)) is not None}
    if asked is None:
        asked = min(room, COMPLETION_MAX_TOKENS) if isinstance(request, CompletionRequest) else room
    # Keeping more tokens than there are keeps all; the engine stores the number in 32 bits.
    if (values.get("top_k") or 0) > engine.vocab_size:
        values["top_k"] = 0
    values["max_tokens"] = asked
    try:
        return SamplingParams(**values)
    except InvalidRequestError as error:
        if error.field == "max_tokens" and field != "max_tokens":
            raise InvalidRequestError(str(error).replace("max_tokens", field), field=field, value=error.value) from error
        raise


def _asked_tokens(request: GenerationRequest) -> tuple[int | None, str]:
    if isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens, "max_completion_tokens"
    return request.max_tokens, "max_tokens"
