"""From what a client sent to token ids that fit the model. Long texts are tokenized on a thread, so that others keep streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.engine import Engine
from xlaserve.server.errors import ContextLengthError, shown
from xlaserve.server.protocol import MAX_PROMPTS, CompletionRequest

# About a millisecond of tokenizing; anything longer would delay other clients' tokens noticeably.
INLINE_CHARS = 4096
# No vocabulary in use has longer entries, so a longer text cannot fit: it is refused before any work is spent on it.
MAX_CHARS_PER_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for the engine.

    Args:
        token_ids: what the model reads; never empty.
        echo: the prompt as text where the client wants it before the completion, else "".
    """

    token_ids: list[int]
    echo: str = ""


async def completion_prompts(request: CompletionRequest, engine: Engine) -> list[Prompt]:
    """The prompts of a /v1/completions request, in order.

    Raises:
        InvalidRequestError: empty or too many prompts, token ids outside of the vocabulary.
        ContextLengthError: a prompt leaves no room for a token.
    """
    given = request.prompt
    batch: list[Any] = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    if len(batch) > MAX_PROMPTS:
        raise InvalidRequestError(f"`prompt` may hold at most {MAX_PROMPTS} prompts, got {len(batch)}.", field="prompt", value=len(batch))
    special = request.add_special_tokens is not False
    prompts: list[Prompt] = []
    for number, item in enumerate(batch):
        field = "prompt" if len(batch) == 1 else f"prompt.{number}"
        if isinstance(item, str):
            # Also where the tokenizer would add a beginning-of-sequence token: an empty prompt is a mistake with every model.
            check_length(len(item) and 1, engine, field)
            ids = await encode(engine, lambda text=item: text, len(item), add_special_tokens=special, field=field)
            prompts.append(Prompt(ids, item if request.echo else ""))
        else:
            _check_ids(item, engine, field)
            prompts.append(Prompt(item, engine.tokenizer.decode(item, skip_special_tokens=False) if request.echo else ""))
    return prompts


async def encode(engine: Engine, text: Callable[[], str], size: int, *, add_special_tokens: bool, field: str) -> list[int]:
    """Makes a text and tokenizes it, on a thread where it is long.

    Args:
        engine: whose tokenizer and context length count.
        text: makes the prompt's text; may raise InvalidRequestError.
        size: characters in it, as far as known beforehand.
        add_special_tokens: let the tokenizer add its beginning-of-sequence token.
        field: what the client calls it.

    Raises:
        InvalidRequestError: it has no tokens.
        ContextLengthError: it leaves no room for a token.
    """
    limit = engine.max_model_len

    def work() -> list[int]:
        try:
            prompt = text()
        except RecursionError as error:
            raise InvalidRequestError(f"`{field}` is nested too deeply.", field=field) from error
        if len(prompt) > limit * MAX_CHARS_PER_TOKEN:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens, and a prompt of {len(prompt)} characters cannot fit into it.",
                field=field,
                value=len(prompt),
            )
        return engine.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)

    ids = work() if size <= INLINE_CHARS else await asyncio.to_thread(work)
    check_length(len(ids), engine, field)
    return ids


def check_length(count: int, engine: Engine, field: str) -> None:
    """Raises where a prompt of `count` tokens is empty or leaves no room for one more."""
    if count == 0:
        raise InvalidRequestError(f"`{field}` must not be empty: it has no tokens.", field=field, value=count)
    if count >= engine.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {engine.max_model_len} tokens, and the prompt has {count}: "
            "shorten it so that at least one token can follow.",
            field=field,
            value=count,
        )


def _check_ids(ids: list[Any], engine: Engine, field: str) -> None:
    # The length first: it bounds the work on the rest.
    check_length(len(ids), engine, field)
    for token in ids:
        if type(token) is not int or not 0 <= token < engine.vocab_size:
            raise InvalidRequestError(
                f"`{field}` must hold token ids between 0 and {engine.vocab_size - 1}, got {shown(token)}.", field=field, value=token
            )
