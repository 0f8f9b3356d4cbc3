"""Which tokens made which text: /v1/responses gives log probabilities of an answer's text, not of its reasoning or its markers."""

from __future__ import annotations

from collections import deque
from typing import Any

from xlaserve.server.chat_run import ChatDelta
from xlaserve.server.logprobs import LogprobWriter


class TextLogprobs:
    """Matches pieces of text with the tokens that they came from, in order.

    Args:
        writer: makes chat log probabilities; it makes none where the request asks for none.
    """

    def __init__(self, writer: LogprobWriter) -> None:
        self._writer = writer
        self._tokens: deque[dict[str, Any]] = deque()
        self._rest = ""

    def add(self, delta: ChatDelta) -> None:
        """Tokens that were generated."""
        written = self._writer.write(delta.choice, delta.token_ids, delta.logprobs) if delta.logprobs else None
        if written is not None:
            self._tokens.extend(written["content"])

    def take(self, text: str) -> list[dict[str, Any]]:
        """The log probabilities of the tokens that `text` begins in; those before it are dropped.

        A token that gave the end of one piece and the beginning of the next belongs to the first. Where texts of tokens do not add up
        to the text, as inside of a character of several tokens, all tokens up to now belong to it.
        """
        if not self._tokens:
            return []
        joined = self._rest + "".join(token["token"] for token in self._tokens)
        at = joined.find(text)
        end = at + len(text) if at >= 0 else len(joined)
        position = len(self._rest)
        taken: list[dict[str, Any]] = []
        while self._tokens and position < end:
            token = self._tokens.popleft()
            position += len(token["token"])
            if position > at:
                taken.append(token)
        self._rest = joined[end:position]
        return taken
