"""A GGUF file through the `gguf` package: metadata as Python values, tensors dequantized to float32 by its numpy code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class GGUFFile:
    """An open GGUF file that remembers which tensors were read.

    Attributes:
        path: the file.
        metadata: every key of the header with its value (numbers, strings, or lists of them).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._unread = set(self._tensors)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32, rows first."""
        tensor = self._tensors[name]
        self._unread.discard(name)
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        return dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)

    def expect_all_read(self) -> None:
        """Raises RuntimeError where a tensor of the file was never read."""
        if self._unread:
            raise RuntimeError(f"{self.path}: unused tensors {sorted(self._unread)}")

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
