"""A model directory in Hugging Face's layout as a `Checkpoint`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from xlaserve.errors import CheckpointError
from xlaserve.models.checkpoint import Checkpoint, TensorInfo
from xlaserve.models.safetensors import SafetensorsDirectory
from xlaserve.models.tokenizer import Tokenizer, tokenizer_from_directory

GENERATION_FILE = "generation_config.json"


class HuggingFaceCheckpoint(Checkpoint):
    """`config.json`, safetensors weights and tokenizer files in one directory.

    Args:
        path: the directory.
        name: what to call the model.

    Raises:
        CheckpointError: the configuration or the weights are missing or damaged.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.path = path
        self.config = read_object(path / "config.json")
        generation = path / GENERATION_FILE
        self.generation_config = read_object(generation) if generation.is_file() else {}
        self._weights = SafetensorsDirectory(path)
        self.tensors = {tensor: TensorInfo(span.shape, span.dtype) for tensor, span in self._weights.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self._weights.read(name)

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_directory(self.path)

    def close(self) -> None:
        self._weights.close()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: holds no {path.name}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(content).__name__}.")
    return content
