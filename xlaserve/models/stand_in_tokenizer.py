"""A tokenizer for models that come without one: every byte is a token, and every other id of the vocabulary writes its own number.

So any text has ids within the vocabulary, any id has text, and what ids from 256 on say is read back as the same ids.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from xlaserve.errors import CheckpointError
from xlaserve.models.tokenizer import Tokenizer, byte_characters

_BYTES = 256
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def stand_in_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer.

    Args:
        vocab_size: token ids of the model.

    Raises:
        CheckpointError: there are fewer of them than bytes.
    """
    if vocab_size < _BYTES:
        raise CheckpointError(
            f"config.json: vocab_size is {vocab_size}, and the tokenizer that stands in for a missing one needs {_BYTES}: "
            "put a tokenizer.json beside config.json."
        )
    vocabulary = dict(byte_characters())
    space = next(character for character, byte in vocabulary.items() if byte == ord(" "))
    vocabulary |= {f"{space}{index}": index for index in range(_BYTES, vocab_size)}
    # A word that is a token as it stands is taken whole; all others fall into bytes, as there are no merges.
    backend: Any = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, chat_templates={"default": _TEMPLATE})
