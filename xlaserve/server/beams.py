"""From the fields of a request that asks for a beam search to `BeamSearchParams`; as in vLLM, `n` is the number of beams."""

from __future__ import annotations

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.beam_search import BeamSearchParams
from xlaserve.server.protocol import CompletionRequest, GenerationRequest

# What a search, which gives whole completions and changes no probability, has no use for. Temperature, top-p and their like are left
# alone: clients send them with every request.
_NEUTRAL = {
    "stream": (False,),
    "stop": ([], ""),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "top_logprobs": (0,),
    "include_stop_str_in_output": (False,),
}


def beam_search_params(request: GenerationRequest, max_tokens: int) -> BeamSearchParams:
    """The parameters of a search.

    Args:
        request: the parsed body, with `use_beam_search`.
        max_tokens: what it asks for, or what its endpoint gives where it says nothing; it fits the model.

    Raises:
        InvalidRequestError: a value is out of range, or asks for what a search does not give.
    """
    neutral = {**_NEUTRAL, "logprobs": () if isinstance(request, CompletionRequest) else (False,)}
    for name, harmless in neutral.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless:
            raise InvalidRequestError(f"`{name}` is not supported together with `use_beam_search`: leave it out.", field=name, value=value)
    values = {
        "length_penalty": request.length_penalty,
        "early_stopping": request.early_stopping,
        "ignore_eos": request.ignore_eos,
        "skip_special_tokens": request.skip_special_tokens,
        "priority": request.priority,
        "cache_salt": request.cache_salt,
    }
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return BeamSearchParams(beam_width=1 if request.n is None else request.n, max_tokens=max_tokens, **given)  # type: ignore[arg-type]
    except InvalidRequestError as error:
        raise in_request_terms(error) from error


def in_request_terms(error: InvalidRequestError) -> InvalidRequestError:
    """The error as the client's own field names tell it: it knows the number of beams as `n`."""
    if error.field != "beam_width":
        return error
    return InvalidRequestError(str(error).replace("beam_width", "n"), field="n", value=error.value)


def refuse_search_fields(request: GenerationRequest) -> None:
    """Raise InvalidRequestError where a request that does not search says how to."""
    if request.length_penalty not in (None, 1):
        raise InvalidRequestError(
            "`length_penalty` has no meaning without `use_beam_search`: leave it out.", field="length_penalty", value=request.length_penalty
        )
    if request.early_stopping not in (None, False):
        raise InvalidRequestError(
            "`early_stopping` has no meaning without `use_beam_search`: leave it out.", field="early_stopping", value=request.early_stopping
        )
