"""Prompts of any length from a tokenizer's ordinary tokens: as token ids, or as texts that encode to as many. Imports no JAX."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlaserve.errors import ConfigError
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.config import LoadFormat
from xlaserve.models.tokenizer import Tokenizer, tokenizer_from_directory

_TRIES = 16


class Vocabulary:
    """Random prompts.

    Args:
        tokenizer: whose tokens they are made of. Special tokens are left out: they might end a turn, or mean nothing to a server.
        limit: ids from here on are left out, as the model has no embeddings for them; None for no limit.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int | None = None) -> None:
        size = tokenizer.vocab_size if limit is None else min(limit, tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._ids = np.array([token for token in range(size) if not tokenizer.is_special(token)], np.int64)

    def ids(self, count: int, rng: np.random.Generator) -> list[int]:
        """So many random token ids."""
        return rng.choice(self._ids, count).tolist()

    def text(self, ids: list[int]) -> str:
        """A text that is close to `ids` and encodes to as many tokens, or nearly: random tokens merge with their neighbours, so the text is
        cut and lengthened a few times. What a server says it counted is what results tell.
        """
        wanted = len(ids)
        text = self._tokenizer.decode(ids)
        for _ in range(_TRIES):
            found = self._tokenizer.encode(text, add_special_tokens=False)
            if len(found) == wanted:
                break
            # What is missing is taken from the beginning of the ids again.
            text = self._tokenizer.decode((found + ids)[:wanted])
        return text

    def count(self, text: str) -> int:
        """Tokens of a text, what the tokenizer adds around it included."""
        return len(self._tokenizer.encode(text))


def open_vocabulary(source: str | None, load_format: LoadFormat = "auto") -> Vocabulary:
    """The vocabulary of a model: a directory, of which the tokenizer's files are enough, a .gguf file, a hub id; None is the demo model.
    With `load_format` "dummy" no weights need be there, and it may be the name of an architecture.

    Raises:
        CheckpointError: there is none there.
        ConfigError: it has no ordinary tokens.
    """
    if source is not None and (Path(source) / "tokenizer.json").is_file():
        return _checked(source, tokenizer_from_directory(Path(source)))
    checkpoint = open_checkpoint(source, load_format)
    try:
        return _checked(checkpoint.name, checkpoint.tokenizer())
    finally:
        checkpoint.close()


def _checked(name: str, tokenizer: Tokenizer) -> Vocabulary:
    if all(tokenizer.is_special(token) for token in range(tokenizer.vocab_size)):
        raise ConfigError(f"{name}: its tokenizer has special tokens only, of which no prompts can be made.")
    return Vocabulary(tokenizer)
