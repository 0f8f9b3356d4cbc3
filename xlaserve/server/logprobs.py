"""Log probabilities in OpenAI's two shapes, from the engine's; the pieces of a stream put together are what a whole response has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xlaserve.engine.outputs import Logprob
from xlaserve.server.engine import TextCodec


class LogprobWriter:
    """Makes the `logprobs` objects of one response.

    Args:
        tokenizer: gives the bytes of tokens.
        top: how many of the most likely tokens were asked for; None where no log probabilities were.
        chat: the shape of chat completions; else that of text completions.
    """

    def __init__(self, tokenizer: TextCodec, top: int | None, *, chat: bool) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._chat = chat
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
        pairs = list(zip(token_ids, entries, strict=True))
        if self._chat:
            return {"content": [self._content(token, entry) for token, entry in pairs], "refusal": None}
        offsets: list[int] = []
        for token, entry in pairs:
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(entry[token].decoded_token)
        return {
            "tokens": [entry[token].decoded_token for token, entry in pairs],
            "token_logprobs": [entry[token].logprob for token, entry in pairs],
            "top_logprobs": [_by_text(entry) for _, entry in pairs],
            "text_offset": offsets,
        }

    def _content(self, token: int, entry: Mapping[int, Logprob]) -> dict[str, Any]:
        likely = sorted(entry.items(), key=lambda item: item[1].rank)[: self._top]
        return {**self._token(token, entry[token]), "top_logprobs": [self._token(*item) for item in likely]}

    def _token(self, token: int, found: Logprob) -> dict[str, Any]:
        return {"token": found.decoded_token, "logprob": found.logprob, "bytes": list(self._tokenizer.token_bytes(token))}


def _by_text(entry: Mapping[int, Logprob]) -> dict[str, float]:
    """By the token's text; of several tokens with one text the first counts, which is the chosen one, then the most likely."""
    texts: dict[str, float] = {}
    for found in entry.values():
        texts.setdefault(found.decoded_token, found.logprob)
    return texts
