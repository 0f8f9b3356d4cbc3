"""Log probabilities in OpenAI's two shapes, from the engine's; the pieces of a stream put together are what a whole response has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from xlaserve.engine.outputs import Logprob
from xlaserve.server.engine import TextCodec

Places = Sequence[tuple[int, Mapping[int, Logprob] | None]]
"""Tokens with their log probabilities and those of the most likely ones; None where nothing comes before a token."""


class LogprobWriter:
    """Makes the `logprobs` objects of one response.

    Args:
        tokenizer: gives the bytes of tokens.
        top: how many of the most likely tokens were asked for; None where no log probabilities were.
        chat: the shape of chat completions; else that of text completions.
        echoed: gives the tokens, and what is known of each, that a choice's text begins with; None where it begins with its own.
    """

    def __init__(self, tokenizer: TextCodec, top: int | None, *, chat: bool, echoed: Callable[[int], Places] | None = None) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._chat = chat
        self._echoed = echoed
        self._opened: set[int] = set()
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def write(self, choice: int, token_ids: Sequence[int], entries: Sequence[Mapping[int, Logprob]]) -> dict[str, Any] | None:
        """The object for tokens that follow those of the call before for the same choice; None where none were asked for.

        Args:
            choice: whose tokens they are.
            token_ids: the tokens.
            entries: their log probabilities and those of the most likely ones.
        """
        if self._top is None:
            return None
        if self._chat:
            content = [self._content(token, entry) for token, entry in zip(token_ids, entries, strict=True)]
            return {"content": content, "refusal": None}
        pairs: Places = list(zip(token_ids, entries, strict=True))
        if self._echoed is not None and choice not in self._opened:
            pairs = [*self._echoed(choice), *pairs]
        self._opened.add(choice)
        texts = [self._tokenizer.token_bytes(token).decode("utf-8", "replace") for token, _ in pairs]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if entry is None else entry[token].logprob for token, entry in pairs],
            "top_logprobs": [None if entry is None else _by_text(entry) for _, entry in pairs],
            "text_offset": offsets,
        }

    def _content(self, token: int, entry: Mapping[int, Logprob]) -> dict[str, Any]:
        likely = sorted(entry.items(), key=lambda item: item[1].rank)[: self._top]
        return {**self._token(token, entry[token]), "top_logprobs": [self._token(*item) for item in likely]}

    def _token(self, token: int, found: Logprob) -> dict[str, Any]:
        return {"token": found.decoded_token, "logprob": found.logprob, "bytes": list(self._tokenizer.token_bytes(token))}


def prompt_logprobs(entries: Sequence[Mapping[int, Logprob] | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: for each prompt token an object by token id, null for the first; None where none were asked for."""
    if entries is None:
        return None
    return [None if entry is None else {str(token): asdict(found) for token, found in entry.items()} for entry in entries]


def _by_text(entry: Mapping[int, Logprob]) -> dict[str, float]:
    """By the token's text; of several tokens with one text the first counts, which is the chosen one, then the most likely."""
    texts: dict[str, float] = {}
    for found in entry.values():
        texts.setdefault(found.decoded_token, found.logprob)
    return texts
