"""From what a client sent to token ids that fit the model. Long texts are tokenized on a thread, so that others keep streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.engine import Engine
from xlaserve.server.errors import ContextLengthError, shown
from xlaserve.server.protocol import COMPLETION_MAX_TOKENS, MAX_PROMPTS, CompletionRequest, GenerationRequest

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


@dataclass(frozen=True, slots=True)
class Truncation:
    """How prompts are shortened.

    Args:
        tokens: most that are kept, special tokens that the tokenizer adds included.
        keep_end: keep the last ones, not the first.
    """

    tokens: int
    keep_end: bool

    def ids(self, ids: list[int], around: list[int]) -> list[int]:
        """A prompt of at most `tokens` token ids; what the tokenizer puts around a text stays around it.

        Args:
            ids: of the whole prompt.
            around: what the tokenizer makes of an empty text.
        """
        if len(ids) <= self.tokens:
            return ids
        before = next(count for count in range(len(around), -1, -1) if ids[:count] == around[:count])
        after = len(around) - before
        room = self.tokens - len(around)
        if room < 1 or ids[len(ids) - after :] != around[before:]:
            before = after = 0
            room = self.tokens
        inner = ids[before : len(ids) - after]
        kept = inner[-room:] if self.keep_end else inner[:room]
        return [*ids[:before], *kept, *ids[len(ids) - after :]]

    def text(self, text: str) -> str:
        """A part of a long text that holds all tokens which can be kept."""
        limit = self.tokens * MAX_CHARS_PER_TOKEN
        return text[-limit:] if self.keep_end else text[:limit]


def truncation_of(request: GenerationRequest, engine: Engine, output_tokens: int) -> Truncation | None:
    """How the request wants its prompts shortened; None where it does not.

    Args:
        request: the parsed body.
        engine: whose context length counts.
        output_tokens: how many tokens it asks for, so that -1 leaves room for them.

    Raises:
        InvalidRequestError: the number is not -1 or a length that fits.
    """
    asked = request.truncate_prompt_tokens
    if asked is None:
        return None
    if asked != -1 and not 1 <= asked <= engine.max_model_len:
        raise InvalidRequestError(
            f"`truncate_prompt_tokens` must be between 1 and {engine.max_model_len}, this model's maximum context length, or -1 for as "
            f"many as fit, got {asked}.",
            field="truncate_prompt_tokens",
            value=asked,
        )
    fitting = max(1, engine.max_model_len - max(1, output_tokens))
    return Truncation(fitting if asked == -1 else asked, keep_end=request.truncation_side != "right")


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
    truncation = truncation_of(request, engine, COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens)
    prompts: list[Prompt] = []
    for number, item in enumerate(batch):
        field = "prompt" if len(batch) == 1 else f"prompt.{number}"
        if isinstance(item, str):
            # Also where the tokenizer would add a beginning-of-sequence token: an empty prompt is a mistake with every model.
            check_length(len(item) and 1, engine, field)
            ids = await encode(engine, lambda text=item: text, len(item), add_special_tokens=special, field=field, truncation=truncation)
            echo = item if truncation is None or len(ids) < truncation.tokens else None
        else:
            ids, echo = item if truncation is None else truncation.ids(item, []), None
            _check_ids(ids, engine, field)
        if request.echo and echo is None:
            # Of a text that was cut, without what the tokenizer put before it.
            echo = engine.tokenizer.decode(ids, skip_special_tokens=isinstance(item, str))
        prompts.append(Prompt(ids, echo or "" if request.echo else ""))
    return prompts


async def encode(
    engine: Engine,
    text: Callable[[], str],
    size: int,
    *,
    add_special_tokens: bool,
    field: str,
    truncation: Truncation | None = None,
    bounded: bool = True,
) -> list[int]:
    """Makes a text and tokenizes it, on a thread where it is long.

    Args:
        engine: whose tokenizer and context length count.
        text: makes the prompt's text; may raise InvalidRequestError.
        size: characters in it, as far as known beforehand.
        add_special_tokens: let the tokenizer add its beginning-of-sequence token.
        field: what the client calls it.
        truncation: how to shorten it; None leaves it as it is.
        bounded: whether it must fit the model and have a token; what is only counted need not.

    Raises:
        InvalidRequestError: it has no tokens.
        ContextLengthError: it leaves no room for a token.
    """
    limit = engine.max_model_len
    tokenizer = engine.tokenizer

    def work() -> list[int]:
        try:
            prompt = text()
        except RecursionError as error:
            raise InvalidRequestError(f"`{field}` is nested too deeply.", field=field) from error
        if truncation is not None:
            ids = tokenizer.encode(truncation.text(prompt), add_special_tokens=add_special_tokens)
            return truncation.ids(ids, tokenizer.encode("") if add_special_tokens else [])
        if bounded and len(prompt) > limit * MAX_CHARS_PER_TOKEN:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens, and a prompt of {len(prompt)} characters cannot fit into it.",
                field=field,
                value=len(prompt),
            )
        return tokenizer.encode(prompt, add_special_tokens=add_special_tokens)

    ids = work() if size <= INLINE_CHARS else await asyncio.to_thread(work)
    if bounded:
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
