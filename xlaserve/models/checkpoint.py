"""A model's weights, configuration and tokenizer behind one interface, whatever the files are.

Everything has Hugging Face's names and layouts: a GGUF file looks like the directory that it was converted from.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlaserve.models.config import LoadFormat
from xlaserve.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape of one parameter, and the type that it is stored in by the name that its format uses ("BF16", "F32", "Q4_1")."""

    shape: tuple[int, ...]
    dtype: str


class Checkpoint(ABC):
    """One model on disk.

    Attributes:
        name: what a server shows as the model id: hub id, directory name or file stem.
        path: the directory or file.
        config: content of `config.json`, made up for formats that keep it elsewhere.
        generation_config: content of `generation_config.json`, or empty.
        tensors: Hugging Face parameter names, such as `model.layers.0.self_attn.q_proj.weight`, to what is stored.
    """

    name: str
    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """One parameter in Hugging Face's layout.

        Safetensors give a read-only view of the mapped file in the stored type (ml_dtypes for bfloat16 and float8); GGUF gives fresh
        float32 for quantized tensors, and the stored type for F32, F16 and BF16.

        Raises:
            KeyError: the checkpoint holds no such parameter.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer. CheckpointError or UnsupportedModelError where it is missing, damaged or of an unknown kind."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. Arrays already read stay valid."""

    def fingerprint(self) -> str:
        """A stable hash of the configuration and of all parameter names, shapes and types: what compiled graphs depend on."""
        tensors = {name: [list(info.shape), info.dtype] for name, info in self.tensors.items()}
        content = json.dumps({"config": self.config, "tensors": tensors}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8")).hexdigest()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation, from the generation config if it names any, else from the config."""
        for config in (self.generation_config, self.config):
            value = config.get("eos_token_id")
            if isinstance(value, int):
                return (value,)
            if isinstance(value, list) and value:
                return tuple(value)
        return ()


def open_config(source: str | Path | None) -> tuple[str, dict[str, Any]]:
    """A model's name and configuration, as `Checkpoint.config` has it, without its weights.

    Args:
        source: as for `open_checkpoint`, or the name of an architecture; a directory needs only config.json.

    Raises:
        CheckpointError, UnsupportedModelError: as for `open_checkpoint`.
    """
    from xlaserve.models.architectures import NAMED
    from xlaserve.models.gguf import GgufFile
    from xlaserve.models.gguf_config import config_from_gguf
    from xlaserve.models.hf_checkpoint import read_object
    from xlaserve.models.source import CONFIG_FILE, resolve_config

    found = resolve_config(source)
    if found.path.is_dir():
        return found.name, read_object(found.path / CONFIG_FILE)
    if not found.path.exists():
        return found.name, dict(NAMED[found.name].config)
    return found.name, config_from_gguf(GgufFile(found.path))


def open_checkpoint(source: str | Path | None, load_format: LoadFormat = "auto") -> Checkpoint:
    """Open a model.

    Args:
        source: a directory in Hugging Face's layout, a `.gguf` file, the id of a model on the hub, or None for the demo model.
        load_format: "dummy" needs no weights, and takes the name of an architecture (`xlaserve.models.architectures`) too.

    Raises:
        CheckpointError: it cannot be found, fetched or read; the message says what to do.
        UnsupportedModelError: it can be read, but something in it is not implemented.
    """
    from xlaserve.models.dummy import DummyCheckpoint
    from xlaserve.models.gguf_checkpoint import GgufCheckpoint
    from xlaserve.models.hf_checkpoint import HuggingFaceCheckpoint
    from xlaserve.models.source import resolve

    if load_format == "dummy":
        return DummyCheckpoint(source)
    found = resolve(source)
    if found.path.is_dir():
        return HuggingFaceCheckpoint(found.path, found.name)
    return GgufCheckpoint(found.path, found.name)
