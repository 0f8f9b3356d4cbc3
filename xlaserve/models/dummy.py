"""A checkpoint of which only the configuration is there: its weights are random, and made on the device (`models/dummy_weights.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xlaserve.models.architectures import NAMED
from xlaserve.models.checkpoint import Checkpoint
from xlaserve.models.gguf_checkpoint import GgufCheckpoint
from xlaserve.models.hf_checkpoint import GENERATION_FILE, read_object
from xlaserve.models.source import CONFIG_FILE, resolve_config
from xlaserve.models.stand_in_tokenizer import stand_in_tokenizer
from xlaserve.models.tokenizer import Tokenizer, has_tokenizer, tokenizer_from_directory


class DummyCheckpoint(Checkpoint):
    """A model without weights: `tensors` is empty. Its tokenizer is the model's own where that is at hand, else one that stands in.

    Args:
        source: the name of an architecture, a directory with config.json, a `.gguf` file, a hub id, or None for the demo model.

    Raises:
        CheckpointError, UnsupportedModelError: its configuration cannot be found or read.
    """

    def __init__(self, source: str | Path | None) -> None:
        found = resolve_config(source, tokenizer=True)
        self.name, self.path = found.name, found.path
        self.tensors = {}
        self.generation_config = {}
        self._file: GgufCheckpoint | None = None
        if found.path.is_dir():
            self.config = read_object(found.path / CONFIG_FILE)
            if (found.path / GENERATION_FILE).is_file():
                self.generation_config = read_object(found.path / GENERATION_FILE)
        elif found.path.is_file():
            self._file = GgufCheckpoint(found.path, found.name)
            self.config, self.generation_config = self._file.config, self._file.generation_config
        else:
            self.config = dict(NAMED[found.name].config)

    def read(self, name: str) -> np.ndarray:
        raise KeyError(name)

    def tokenizer(self) -> Tokenizer:
        if self._file is not None:
            return self._file.tokenizer()
        if self.path.is_dir() and has_tokenizer(self.path):
            return tokenizer_from_directory(self.path)
        return stand_in_tokenizer(self.config["vocab_size"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
