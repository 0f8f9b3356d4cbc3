"""Reading safetensors files: memory mapped, checked before use, handed out as read-only numpy views without a copy.

A file comes from strangers: every length, offset, shape and name in its header is checked once, when it is opened, and a damaged
file is a `CheckpointError` that names the file, the tensor and what is wrong. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from xlaserve.errors import CheckpointError, UnsupportedModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000

# The names that the format gives its types. Types narrower than a byte (F4, F6) have no addressable elements and are refused.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Where one tensor lies: its type name and shape, and its bytes `[start, end)` counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One memory-mapped safetensors file.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file cannot be read, or its header is damaged.
        UnsupportedModelError: a tensor has a type that this reader does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size < 8:
                    raise CheckpointError(
                        f"{path}: {size} bytes are too few for a safetensors file, which starts with an 8-byte header length."
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
        self.tensors: dict[str, TensorSpan] = _read_header(path, self._map)

    def read(self, name: str) -> np.ndarray:
        """A read-only view of one tensor's bytes in the mapped file, in the stored type.

        Raises:
            KeyError: the file holds no tensor of that name.
        """
        span = self.tensors[name]
        return np.frombuffer(self._map, DTYPES[span.dtype], math.prod(span.shape), span.start).reshape(span.shape)

    def close(self) -> None:
        """Let go of the file. Views already handed out stay valid; the map goes away with the last of them."""
        with suppress(BufferError):  # numpy views still point into the map: it is unmapped when they are collected
            self._map.close()


class SafetensorsDirectory:
    """All tensors of a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Args:
        directory: the model directory.

    Raises:
        CheckpointError: there is no such file, the index is damaged, a shard is missing or damaged, a tensor is in two shards, or the
            index names a tensor that its shard does not hold.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        weight_map: dict[str, str] = {}
        if (directory / SINGLE_FILE).is_file():
            names = [SINGLE_FILE]
        elif (directory / INDEX_FILE).is_file():
            weight_map = _read_index(directory / INDEX_FILE)
            names = sorted(set(weight_map.values()))
        else:
            raise CheckpointError(f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}.")
        self._files = {name: SafetensorsFile(directory / name) for name in names}
        self._home: dict[str, SafetensorsFile] = {}
        for file in self._files.values():
            for tensor in file.tensors:
                if tensor in self._home:
                    raise CheckpointError(f"{file.path}: tensor {tensor!r} is also in {self._home[tensor].path.name}.")
                self._home[tensor] = file
        for tensor, name in weight_map.items():
            if tensor not in self._files[name].tensors:
                raise CheckpointError(f"{directory / name}: holds no tensor {tensor!r}, though {INDEX_FILE} says so.")
        self.tensors: dict[str, TensorSpan] = {tensor: file.tensors[tensor] for tensor, file in self._home.items()}

    def read(self, name: str) -> np.ndarray:
        """A read-only view of one tensor, without a copy. KeyError where no shard holds it."""
        return self._home[name].read(name)

    def close(self) -> None:
        """Let go of every shard; views already handed out stay valid."""
        for file in self._files.values():
            file.close()


def _read_header(path: Path, data: mmap.mmap) -> dict[str, TensorSpan]:
    size = len(data)
    length = int.from_bytes(data[:8], "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path}: the header claims {length} bytes, but the file has {size - 8} after the header length "
            f"and the limit is {MAX_HEADER_BYTES}. The file is truncated or is not a safetensors file."
        )
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON: {error}.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object, got {type(header).__name__}.")
    header.pop("__metadata__", None)
    base = 8 + length
    spans = {name: _span(path, name, entry, base, size) for name, entry in header.items()}
    # The bytes of a sound file are tiled by its tensors: no overlap, no hole, no rest (the reference reader demands the same).
    position = base
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].end)):
        if span.start != position:
            what = "overlaps the tensor before it" if span.start < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {name!r} starts at byte {span.start - base} and {what}, which ends at {position - base}."
            )
        position = span.end
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor belong to no tensor.")
    return spans


def _span(path: Path, name: str, entry: Any, base: int, size: int) -> TensorSpan:
    """Check one header entry. `base` is where tensor bytes begin, `size` the length of the file."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets, got {str(entry)[:100]}.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsupportedModelError(f"{path}: tensor {name!r} has the type {dtype!r}; supported are {', '.join(DTYPES)}.")
    if not _is_naturals(shape):
        raise CheckpointError(f"{path}: tensor {name!r} has the shape {shape!r}; it must be a list of integers that are not negative.")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path}: tensor {name!r} has the data_offsets {offsets!r}; they must be [begin, end] with begin <= end.")
    begin, end = offsets
    if base + end > size:
        raise CheckpointError(
            f"{path}: tensor {name!r} ends at byte {end}, but the file holds {size - base} bytes of tensors: it is truncated."
        )
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise CheckpointError(f"{path}: tensor {name!r} of shape {shape} and type {dtype} needs {wanted} bytes, but spans {end - begin}.")
    return TensorSpan(dtype, tuple(shape), base + begin, base + end)


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}.") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: needs a weight_map that names the file of each tensor.")
    for tensor, name in weight_map.items():
        # A shard is a plain file name: an index must not lead outside its directory.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: tensor {tensor!r} is said to be in {name!r}, which is not the plain name of a .safetensors file."
            )
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path}: names the shard {name}, which is not in {path.parent}. The download is incomplete.")
    return weight_map


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} is there twice")
    return result


def _is_naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
