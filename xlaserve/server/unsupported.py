"""Fields of OpenAI's and vLLM's APIs that this engine does not have: refused where they ask for something, never silently ignored.

A value that asks for nothing (null, or the neutral values below) is accepted, since many clients send every field they know.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson

from xlaserve.errors import InvalidRequestError
from xlaserve.server.protocol import GenerationRequest

log = logging.getLogger(__name__)

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprob_token_ids": ([],),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "prompt_embeds": (),
    "thinking_token_budget": (-1,),
    "repetition_detection": (),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "kv_transfer_params": ({},),
    "ec_transfer_params": ({},),
    "vllm_xargs": ({},),
    "return_token_offsets": (False,),
    "return_prompt_text": (False,),
    "return_assistant_tokens_mask": (False,),
    "routed_experts_prompt_start": (0,),
}
# What only the other endpoint declares.
_NEUTRAL_IN_CHAT: dict[str, tuple[Any, ...]] = {"echo": (False,)}
_NEUTRAL_IN_COMPLETIONS: dict[str, tuple[Any, ...]] = {"top_logprobs": (0,)}
# Hints and bookkeeping that change nothing in the answer.
_HINTS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
        "verbosity",
    }
)


def refuse_unsupported(request: GenerationRequest, *, chat: bool) -> None:
    """Looks at the fields that the request model does not declare.

    Args:
        request: the parsed body.
        chat: True for /v1/chat/completions.

    Raises:
        InvalidRequestError: a field asks for something that the engine does not have.
    """
    neutral = {**_NEUTRAL, **(_NEUTRAL_IN_CHAT if chat else _NEUTRAL_IN_COMPLETIONS)}
    unknown: list[str] = []
    for name, value in (request.model_extra or {}).items():
        if value is None or name in _HINTS:
            continue
        if name == "best_of":
            _check_best_of(value, request.n or 1)
        elif name in neutral:
            _check_neutral(name, value, neutral[name])
        else:
            unknown.append(name)
    if unknown and log.isEnabledFor(logging.DEBUG):
        log.debug("request fields ignored because they are unknown: %.500s", ", ".join(sorted(unknown)))


def _check_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    # True == 1 and False == 0 in Python, but logprobs=0 asks for something and logprobs=false does not.
    if any(isinstance(value, bool) == isinstance(harmless, bool) and value == harmless for harmless in neutral):
        return
    allowed = " or ".join(f"set it to {orjson.dumps(harmless).decode()}" for harmless in neutral) or "set it to null"
    raise InvalidRequestError(f"`{name}` is not supported by this server: leave it out or {allowed}.", field=name, value=value)


def _check_best_of(value: Any, n: int) -> None:
    if isinstance(value, bool) or value != n:
        raise InvalidRequestError(
            "`best_of` is not supported by this server: leave it out or set it to the value of `n`.", field="best_of", value=value
        )
