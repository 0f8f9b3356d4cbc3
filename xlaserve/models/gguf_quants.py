"""GGUF's tensor types and their expansion to float32, vectorized over blocks.

Each quantized type packs a fixed number of values into one block; a numpy record type below spells the layout of a block, and a
function expands `n` blocks into an `(n, block size)` float32 array in place. Arithmetic follows ggml's `dequantize_row_*` operation
by operation, so results are equal to the last bit. Layouts: ggml-common.h in https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

# Blocks are expanded in slabs of this many values, so that temporaries stay small beside the result.
SLAB_VALUES = 1 << 20

Blocks = np.ndarray[Any, np.dtype[np.void]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def _block(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


def _factor(blocks: Blocks, field: str) -> Floats:
    """One float16 per block as a float32 column, shape (n, 1)."""
    return blocks[field].astype(np.float32)[:, None]


def _nibbles(blocks: Blocks, out: Floats) -> None:
    """The low halves of 16 bytes, then their high halves: 32 values of 4 bits."""
    out[:, :16] = blocks["qs"] & 0x0F
    out[:, 16:] = blocks["qs"] >> 4


def _q4_0(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks, out)
    out -= 8
    out *= _factor(blocks, "d")


def _q4_1(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks, out)
    out *= _factor(blocks, "d")
    out += _factor(blocks, "m")


def _fifth_bits(blocks: Blocks, out: Floats) -> None:
    """Add the fifth bit of 32 values, kept as 32 bits beside their nibbles."""
    out += np.unpackbits(blocks["qh"], axis=1, bitorder="little") << 4


def _q5_0(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks, out)
    _fifth_bits(blocks, out)
    out -= 16
    out *= _factor(blocks, "d")


def _q5_1(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks, out)
    _fifth_bits(blocks, out)
    out *= _factor(blocks, "d")
    out += _factor(blocks, "m")


def _q8_0(blocks: Blocks, out: Floats) -> None:
    np.multiply(blocks["qs"], _factor(blocks, "d"), out=out)


def _fields(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """Split bytes (n, groups, 32) into `count` fields of `width` bits each, lowest first: (n, groups, count, 32)."""
    shifts = np.arange(0, count * width, width, dtype=np.uint8)[:, None]
    return (packed[:, :, None, :] >> shifts) & np.uint8((1 << width) - 1)


def _scaled(out: Floats, scale: Floats, minimum: Floats | None = None) -> None:
    """Multiply each sub-block of a 256-value block by its scale (n, sub-blocks) and subtract its minimum."""
    view = out.reshape(len(out), scale.shape[1], -1)
    view *= scale[:, :, None]
    if minimum is not None:
        view -= minimum[:, :, None]


def _q2_k(blocks: Blocks, out: Floats) -> None:
    out.reshape(-1, 2, 4, 32)[:] = _fields(blocks["qs"].reshape(-1, 2, 32), 4, 2)
    packed = blocks["scales"]
    _scaled(out, _factor(blocks, "d") * (packed & 0x0F).astype(np.float32), _factor(blocks, "dmin") * (packed >> 4).astype(np.float32))


def _q3_k(blocks: Blocks, out: Floats) -> None:
    low = _fields(blocks["qs"].reshape(-1, 2, 32), 4, 2).reshape(-1, 256).astype(np.int8)
    high = _fields(blocks["hmask"].reshape(-1, 1, 32), 8, 1).reshape(-1, 256)
    np.copyto(out, low - ((high ^ 1) << 2).astype(np.int8))
    # 16 scales of 6 bits: nibbles in the first 8 bytes, the upper two bits in the last 4.
    packed = blocks["scales"]
    nibbles = np.concatenate([packed[:, :8] & 0x0F, packed[:, :8] >> 4], axis=1)
    upper = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = (nibbles | (upper << 4)).astype(np.int8) - np.int8(32)
    _scaled(out, _factor(blocks, "d") * scale.astype(np.float32))


def _scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack 8 scales and 8 minimums of 6 bits each from 12 bytes: two arrays (n, 8)."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)], axis=1)
    minimums = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _q4_k(blocks: Blocks, out: Floats) -> None:
    out.reshape(-1, 4, 2, 32)[:] = _fields(blocks["qs"].reshape(-1, 4, 32), 2, 4)
    scales, minimums = _scales_and_minimums(blocks["scales"])
    _scaled(out, _factor(blocks, "d") * scales, _factor(blocks, "dmin") * minimums)


def _q5_k(blocks: Blocks, out: Floats) -> None:
    low = _fields(blocks["qs"].reshape(-1, 4, 32), 2, 4).reshape(-1, 256)
    high = _fields(blocks["qh"].reshape(-1, 1, 32), 8, 1).reshape(-1, 256)
    np.copyto(out, low | (high << 4))
    scales, minimums = _scales_and_minimums(blocks["scales"])
    _scaled(out, _factor(blocks, "d") * scales, _factor(blocks, "dmin") * minimums)


def _q6_k(blocks: Blocks, out: Floats) -> None:
    # Both halves of 128 values: 64 bytes of low nibbles (first all low halves, then all high halves), 32 bytes of upper bit pairs.
    low = blocks["ql"].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 0x0F
    high = _fields(blocks["qh"].reshape(-1, 2, 32), 4, 2)
    np.copyto(out, (low.reshape(-1, 256) | (high.reshape(-1, 256) << 4)).astype(np.int8) - np.int8(32))
    _scaled(out, _factor(blocks, "d") * blocks["scales"].astype(np.float32))


@dataclass(frozen=True, slots=True)
class GgufType:
    """One of GGUF's tensor types: `block_size` values are stored as one record of type `layout`."""

    name: str
    block_size: int
    layout: np.dtype[Any]
    expand: Callable[[Blocks, Floats], None] | None = None

    def nbytes(self, values: int) -> int:
        """Bytes of that many values, which must be a whole number of blocks."""
        return values // self.block_size * self.layout.itemsize


# Keyed by the type number in the file (enum ggml_type).
TYPES: dict[int, GgufType] = {
    0: GgufType("F32", 1, np.dtype("<f4")),
    1: GgufType("F16", 1, np.dtype("<f2")),
    2: GgufType("Q4_0", 32, _block(("d", "<f2"), ("qs", "u1", 16)), _q4_0),
    3: GgufType("Q4_1", 32, _block(("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)), _q4_1),
    6: GgufType("Q5_0", 32, _block(("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0),
    7: GgufType("Q5_1", 32, _block(("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)), _q5_1),
    8: GgufType("Q8_0", 32, _block(("d", "<f2"), ("qs", "i1", 32)), _q8_0),
    10: GgufType("Q2_K", 256, _block(("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")), _q2_k),
    11: GgufType("Q3_K", 256, _block(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")), _q3_k),
    12: GgufType("Q4_K", 256, _block(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)), _q4_k),
    13: GgufType("Q5_K", 256, _block(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)), _q5_k),
    14: GgufType("Q6_K", 256, _block(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")), _q6_k),
    30: GgufType("BF16", 1, np.dtype(ml_dtypes.bfloat16)),
}

# Types that exist but are not implemented, so that an error can name them.
UNSUPPORTED_TYPES: dict[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def dequantize(data: np.ndarray, kind: GgufType, shape: tuple[int, ...]) -> np.ndarray:
    """Expand one tensor.

    Args:
        data: its bytes, uint8 of shape (n,), exactly as many as the shape needs.
        kind: its type.
        shape: its shape, row-major, the last axis a whole number of blocks.

    Returns:
        A fresh float32 array of that shape; for F32, F16 and BF16 a view of `data` in the stored type instead.
    """
    stored = data.view(kind.layout)
    if kind.expand is None:
        return stored.reshape(shape)
    out = np.empty((len(stored), kind.block_size), np.float32)
    assert out.size == math.prod(shape)
    step = SLAB_VALUES // kind.block_size
    for start in range(0, len(stored), step):
        kind.expand(stored[start : start + step], out[start : start + step])
    return out.reshape(shape)
