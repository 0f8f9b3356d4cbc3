"""A GGUF file as a `Checkpoint`: names, layouts, configuration and tokenizer as Hugging Face has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xlaserve.models.checkpoint import Checkpoint, TensorInfo
from xlaserve.models.gguf import GgufFile
from xlaserve.models.gguf_config import config_from_gguf, generation_config_from_gguf
from xlaserve.models.gguf_names import sources
from xlaserve.models.gguf_tokenizer import tokenizer_from_gguf
from xlaserve.models.tokenizer import Tokenizer

_SPECIAL_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # sic: the key is spelled so in GGUF
    "pad_token": "padding_token_id",
}
_TEMPLATE = "tokenizer.chat_template"


class GgufCheckpoint(Checkpoint):
    """One `.gguf` file.

    Args:
        path: the file.
        name: what to call the model.

    Raises:
        CheckpointError: the file is damaged.
        UnsupportedModelError: its architecture, one of its options or one of its tensor types is not implemented.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.path = path
        self._file = GgufFile(path)
        self.config = config_from_gguf(self._file)
        self.generation_config = generation_config_from_gguf(self._file.metadata)
        self._sources = sources(
            list(self._file.tensors),
            self._file.metadata["general.architecture"],
            self.config["num_attention_heads"],
            self.config["num_key_value_heads"],
        )
        stored = {parameter: self._file.tensors[source.name] for parameter, source in self._sources.items()}
        self.tensors = {parameter: TensorInfo(tensor.shape, tensor.kind.name) for parameter, tensor in stored.items()}

    def read(self, name: str) -> np.ndarray:
        source = self._sources[name]
        return source.restore(self._file.read(source.name))

    def tokenizer(self) -> Tokenizer:
        metadata = self._file.metadata
        tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
        backend = tokenizer_from_gguf(metadata)
        special: dict[str, str] = {}
        for name, key in _SPECIAL_KEYS.items():
            index: Any = metadata.get(f"tokenizer.ggml.{key}")
            if isinstance(index, int) and index < len(tokens):
                special[name] = tokens[index]
        templates = {"default": metadata[_TEMPLATE]} if isinstance(metadata.get(_TEMPLATE), str) else {}
        templates |= {
            key.removeprefix(f"{_TEMPLATE}."): value
            for key, value in metadata.items()
            if key.startswith(f"{_TEMPLATE}.") and isinstance(value, str)
        }
        return Tokenizer(backend, special_tokens=special, chat_templates=templates)

    def close(self) -> None:
        self._file.close()
