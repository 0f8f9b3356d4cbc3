"""Reading the GGUF container (versions 2 and 3): memory mapped, every count and offset checked before it is followed.

A damaged file is a `CheckpointError` that names the file and what is wrong; what the format allows but this reader does not
implement is an `UnsupportedModelError`. Format: docs/gguf.md in https://github.com/ggml-org/ggml
"""

from __future__ import annotations

import math
import mmap
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.gguf_quants import TYPES, UNSUPPORTED_TYPES, GgufType, dequantize

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor in the file: its type, its shape (row-major, outermost axis first) and the byte at which it starts."""

    kind: GgufType
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return self.kind.nbytes(math.prod(self.shape))


class GgufFile:
    """One memory-mapped GGUF file.

    Attributes:
        metadata: the key-value pairs; arrays are lists of strings or numpy arrays, floats that were stored in 32 bits have the shortest
            decimal form that names the same float32 (1e-05, not 9.999999747378752e-06).
        tensors: what the file holds, by GGUF's own names.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file cannot be read or is damaged.
        UnsupportedModelError: an old version, a big-endian or split file, or a tensor type that is not implemented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if path.stat().st_size < 24:
                    raise CheckpointError(f"{path}: is too short for a GGUF file.")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
        cursor = _Cursor(path, self._map)
        tensor_count, pair_count = _read_preamble(cursor)
        self.metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = cursor.string("a metadata key")
            if key in self.metadata:
                raise CheckpointError(f"{path}: the metadata key {key!r} is there twice.")
            self.metadata[key] = cursor.value(key)
        if self.metadata.get("split.count", 0) > 1:
            parts = self.metadata["split.count"]
            raise UnsupportedModelError(
                f"{path}: is one of {parts} parts of a split model. Join them first: llama-gguf-split --merge {path.name} OUT.gguf"
            )
        self.tensors: dict[str, GgufTensor] = _read_tensors(cursor, tensor_count, self.metadata.get("general.alignment", DEFAULT_ALIGNMENT))

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32; F32, F16 and BF16 tensors as a read-only view in their stored type. KeyError where there is none."""
        tensor = self.tensors[name]
        return dequantize(np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.start), tensor.kind, tensor.shape)

    def close(self) -> None:
        """Let go of the file. Views already handed out stay valid; the map goes away with the last of them."""
        with suppress(BufferError):  # numpy views still point into the map: it is unmapped when they are collected
            self._map.close()


class _Cursor:
    """A position in the mapped file that never reads past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def take(self, length: int, what: str) -> int:
        """Step over `length` bytes and return where they start."""
        start = self.position
        if length > self.size - start:
            raise CheckpointError(
                f"{self.path}: {what} needs {length} bytes at byte {start}, but the file has {self.size}: it is truncated or damaged."
            )
        self.position = start + length
        return start

    def scalar(self, dtype: np.dtype[Any], what: str) -> Any:
        return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize, what))[0]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.data[(start := self.take(4, what)) : start + 4], "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.data[(start := self.take(8, what)) : start + 8], "little")

    def string(self, what: str) -> str:
        length = self.u64(what)
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what} is not valid UTF-8: {error}.") from error

    def value(self, key: str) -> Any:
        what = f"the value of {key}"
        kind = self.u32(what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: {key} has the value type {kind}, which GGUF does not define.")
        value = self.scalar(_SCALARS[kind], what)
        return float(str(value)) if value.dtype == np.float32 else value.item()

    def _array(self, key: str) -> Any:
        what = f"the array {key}"
        kind, count = self.u32(what), self.u64(what)
        if kind in _SCALARS:
            dtype = _SCALARS[kind]
            return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize, what))
        if kind == _STRING:
            return self._strings(count, what)
        raise UnsupportedModelError(f"{self.path}: {key} is an array of value type {kind}; arrays of numbers and of strings are supported.")

    def _strings(self, count: int, what: str) -> list[str]:
        """Vocabularies hold hundreds of thousands of strings: one tight loop over local names, checked once at the end of each string."""
        data, size, position, unpack = self.data, self.size, self.position, _LENGTH.unpack_from
        if count * 8 > size - position:
            raise CheckpointError(f"{self.path}: {what} claims {count} strings, more than the file can hold.")
        strings: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > size:
                    raise CheckpointError(
                        f"{self.path}: string {len(strings)} of {what} ends at byte {position}, past the end of the file ({size})."
                    )
                strings.append(data[start:position].decode("utf-8"))
        except struct.error as error:
            raise CheckpointError(f"{self.path}: {what} ends after {len(strings)} of {count} strings: the file is truncated.") from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: string {len(strings)} of {what} is not valid UTF-8: {error}.") from error
        self.position = position
        return strings


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """Magic, version and the two counts: (tensors, metadata pairs)."""
    path = cursor.path
    start = cursor.take(4, "the magic number")
    magic = cursor.data[start : start + 4]
    if magic != MAGIC:
        raise CheckpointError(f"{path}: is not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}.")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        hint = " (a big-endian file)" if version & 0xFFFF == 0 else ""
        raise UnsupportedModelError(f"{path}: GGUF version {version}{hint} is not supported; versions {VERSIONS[0]} and {VERSIONS[1]} are.")
    return cursor.u64("the number of tensors"), cursor.u64("the number of metadata pairs")


def _read_tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, GgufTensor]:
    path = cursor.path
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment must be a power of two, got {alignment!r}.")
    found: dict[str, tuple[GgufType, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = cursor.string("a tensor name")
        if name in found:
            raise CheckpointError(f"{path}: the tensor {name!r} is there twice.")
        found[name] = _read_tensor_info(cursor, name, alignment)
    base = -(-cursor.position // alignment) * alignment
    tensors = {name: GgufTensor(kind, shape, base + offset) for name, (kind, shape, offset) in found.items()}
    position, previous = base, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < position:
            raise CheckpointError(f"{path}: tensor {name!r} starts at byte {tensor.start}, inside {previous}, which ends at {position}.")
        position, previous = tensor.start + tensor.nbytes, repr(name)
        if position > cursor.size:
            raise CheckpointError(f"{path}: tensor {name!r} ends at byte {position}, but the file has {cursor.size}: it is truncated.")
    return tensors


def _read_tensor_info(cursor: _Cursor, name: str, alignment: int) -> tuple[GgufType, tuple[int, ...], int]:
    what = f"the description of tensor {name!r}"
    rank = cursor.u32(what)
    if rank > MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.path}: tensor {name!r} has {rank} dimensions, but GGUF allows {MAX_DIMENSIONS}.")
    # The file lists the fastest axis first.
    shape = tuple(reversed([cursor.u64(what) for _ in range(rank)]))
    number = cursor.u32(what)
    offset = cursor.u64(what)
    if number not in TYPES:
        supported = ", ".join(kind.name for kind in TYPES.values())
        raise UnsupportedModelError(
            f"{cursor.path}: tensor {name!r} has the type {UNSUPPORTED_TYPES.get(number, number)}; supported are {supported}."
        )
    kind = TYPES[number]
    if not shape or 0 in shape or shape[-1] % kind.block_size:
        raise CheckpointError(
            f"{cursor.path}: tensor {name!r} of type {kind.name} has the shape {shape}; "
            f"no axis may be empty, and the last must be a multiple of {kind.block_size}."
        )
    if offset % alignment:
        raise CheckpointError(
            f"{cursor.path}: tensor {name!r} starts at offset {offset}, which is not a multiple of the alignment {alignment}."
        )
    return kind, shape, offset
