"""From request fields to sampling or search parameters. What a request leaves open comes from the checkpoint, as in vLLM."""

from __future__ import annotations

from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.sampling.params import SamplingParams
from xlaserve.sampling.structured import StructuredOutput
from xlaserve.server.beams import beam_search_params, refuse_search_fields
from xlaserve.server.engine import Engine
from xlaserve.server.errors import ContextLengthError
from xlaserve.server.protocol import COMPLETION_MAX_TOKENS, ChatCompletionRequest, CompletionRequest, GenerationRequest

_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_AS_GIVEN = (
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "priority",
    "cache_salt",
)


def only_scores(request: GenerationRequest) -> bool:
    """Whether nothing is to be generated: `echo` with `max_tokens` 0. The engine generates one token then, which nobody sees."""
    return isinstance(request, CompletionRequest) and request.max_tokens == 0 and request.echo is True


def generation_params(
    request: GenerationRequest, engine: Engine, prompt_tokens: int, prompt_field: str, *, structured: StructuredOutput | None
) -> GenerationParams:
    """The parameters for one prompt of the request.

    Args:
        request: the parsed body.
        engine: whose defaults and context length count.
        prompt_tokens: length of the prompt; leaves room for at least one token.
        prompt_field: what the client calls the prompt.
        structured: the form of the output, which the engine has been asked about (`Engine.check`).

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
    if asked is None:
        asked = min(room, COMPLETION_MAX_TOKENS) if isinstance(request, CompletionRequest) else room
    if request.use_beam_search:
        if structured is not None:
            field = (structured.field or "").partition(".")[0]
            raise InvalidRequestError(f"`{field}` is not supported together with `use_beam_search`: leave it out.", field=field)
        if isinstance(request, CompletionRequest) and request.best_of not in (None, 1 if request.n is None else request.n):
            raise InvalidRequestError(
                "`best_of` has no meaning together with `use_beam_search`: leave it out.", field="best_of", value=request.best_of
            )
        return beam_search_params(request, asked)
    refuse_search_fields(request)
    defaults = engine.default_sampling
    values: dict[str, Any] = {name: defaults[name] for name in _FROM_CHECKPOINT if name in defaults}
    values |= {name: value for name in (*_FROM_CHECKPOINT, *_AS_GIVEN) if (value := getattr(request, name)) is not None}
    # Keeping more tokens than there are keeps all; the engine stores the number in 32 bits.
    if (values.get("top_k") or 0) > engine.vocab_size:
        values["top_k"] = 0
    values["max_tokens"] = asked
    values["structured"] = structured
    values["logprobs"], logprobs_field = _asked_logprobs(request)
    values["prompt_logprobs"] = request.prompt_logprobs
    names = {"max_tokens": field, "logprobs": logprobs_field}
    if isinstance(request, CompletionRequest):
        if request.echo and request.logprobs is not None:
            values["prompt_logprobs"] = max(request.prompt_logprobs or 0, request.logprobs)
        if only_scores(request):
            if request.min_tokens:
                raise InvalidRequestError("`min_tokens` must be 0 where `max_tokens` is.", field="min_tokens", value=request.min_tokens)
            values["max_tokens"] = 1
        if request.best_of is not None:
            _check_best_of(request, request.best_of)
            names["n"] = "best_of"
            values["n"] = request.best_of
            values["logprobs"] = values["logprobs"] or 0
    # What clients send that want a random one.
    if values.get("seed") == -1:
        del values["seed"]
    try:
        return SamplingParams(**values)
    except InvalidRequestError as error:
        # The client knows the field by its own name.
        own = names.get(error.field or "", error.field)
        if own is not None and own != error.field:
            raise InvalidRequestError(str(error).replace(error.field or "", own), field=own, value=error.value) from error
        raise


def _check_best_of(request: CompletionRequest, best_of: int) -> None:
    n = 1 if request.n is None else request.n
    if best_of < n:
        raise InvalidRequestError(f"`best_of` must be at least `n`, got {best_of} and {n}.", field="best_of", value=best_of)
    if best_of > n and request.stream:
        raise InvalidRequestError(
            f"`best_of` cannot be streamed: set it to the value of `n`, {n}, or leave `stream` out.", field="best_of", value=best_of
        )


def _asked_tokens(request: GenerationRequest) -> tuple[int | None, str]:
    if isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens, "max_completion_tokens"
    return request.max_tokens, "max_tokens"


def _asked_logprobs(request: GenerationRequest) -> tuple[int | None, str]:
    if isinstance(request, CompletionRequest):
        return request.logprobs, "logprobs"
    assert isinstance(request, ChatCompletionRequest)
    if request.logprobs:
        return request.top_logprobs or 0, "top_logprobs"
    if request.top_logprobs:
        raise InvalidRequestError("`top_logprobs` needs `logprobs` to be true.", field="top_logprobs", value=request.top_logprobs)
    return None, "top_logprobs"
