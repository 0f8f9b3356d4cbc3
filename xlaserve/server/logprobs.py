"""Log probabilities in OpenAI's two shapes, from the engine's; the pieces of a stream put together are what a whole response has."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from xlaserve.engine.outputs import Logprob
from xlaserve.server.engine import TextCodec

Places = Sequence[tuple[int, Mapping[int, Logprob] | None]]
"""Tokens with their log probabilities and those of the most likely ones; None where nothing comes before a token."""

Echo = tuple[str, Places]
"""A prompt as it stands in a choice's text, and its tokens."""


class LogprobWriter:
    """Makes the `logprobs` objects of one response.

    Args:
        tokenizer: gives the bytes of tokens.
        top: how many of the most likely tokens were asked for; None where no log probabilities were.
        chat: the shape of chat completions; else that of text completions.
        echoed: gives the prompt that a choice's text begins with; None where it begins with its own.
        as_ids: write "token_id:7" for a token's text, which tells apart tokens that are parts of characters.
    """

    def __init__(
        self,
        tokenizer: TextCodec,
        top: int | None,
        *,
        chat: bool,
        echoed: Callable[[int], Echo] | None = None,
        as_ids: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._chat = chat
        self._echoed = echoed
        self._as_ids = as_ids
        self._places: dict[int, _Places] = {}

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
        places, offsets = self._places.get(choice), list[int]()
        if places is None:
            places = self._places[choice] = _Places(self._tokenizer)
            if self._echoed is not None:
                text, prompt = self._echoed(choice)
                offsets = places.of_prompt(text, [token for token, _ in prompt])
                pairs = [*prompt, *pairs]
        offsets += [places.of(token) for token in token_ids]
        return {
            "tokens": [self._text(token) for token, _ in pairs],
            "token_logprobs": [None if entry is None else entry[token].logprob for token, entry in pairs],
            "top_logprobs": [None if entry is None else self._by_text(entry) for _, entry in pairs],
            "text_offset": offsets,
        }

    def _content(self, token: int, entry: Mapping[int, Logprob]) -> dict[str, Any]:
        likely = sorted(entry.items(), key=lambda item: item[1].rank)[: self._top]
        return {**self._token(token, entry[token]), "top_logprobs": [self._token(*item) for item in likely]}

    def _token(self, token: int, found: Logprob) -> dict[str, Any]:
        text = f"token_id:{token}" if self._as_ids else found.decoded_token
        return {"token": text, "logprob": found.logprob, "bytes": list(self._tokenizer.token_bytes(token))}

    def _text(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        content = self._tokenizer.token_bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            # As OpenAI writes parts of characters: with U+FFFD for all of them, the most likely token could pass for the chosen one.
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _by_text(self, entry: Mapping[int, Logprob]) -> dict[str, float]:
        """By the token's text; of several tokens with one text the first counts, which is the chosen one, then the most likely."""
        texts: dict[str, float] = {}
        for token, found in entry.items():
            texts.setdefault(self._text(token), found.logprob)
        return texts


class _Places:
    """Where the tokens of one choice begin in its text, in characters; tokens that are parts of one character begin at one place."""

    def __init__(self, tokenizer: TextCodec) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._next = 0

    def of(self, token: int) -> int:
        """Of the next token: the place of the character that its first byte belongs to."""
        content = self._tokenizer.token_bytes(token)
        # Bytes before it that turn out to be no character become U+FFFD, which is not its own.
        shown = len(self._decoder.decode(content[:1]))
        waits = bool(self._decoder.getstate()[0])
        place = self._next + (shown if waits or not shown else shown - 1)
        self._next += shown + len(self._decoder.decode(content[1:]))
        return place

    def of_prompt(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Of the prompt's tokens. The last ends where the text ends; what the text lacks, such as a special token before it, is at 0."""
        places = [self.of(token) for token in tokens]
        whole = self._next + len(self._decoder.decode(b"", final=True))
        self._next = len(text)
        return [max(0, place - whole + len(text)) for place in places]


def prompt_logprobs(entries: Sequence[Mapping[int, Logprob] | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: for each prompt token an object by token id, null for the first; None where none were asked for."""
    if entries is None:
        return None
    return [None if entry is None else {str(token): asdict(found) for token, found in entry.items()} for entry in entries]
