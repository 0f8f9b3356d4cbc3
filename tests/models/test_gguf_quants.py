"""Every block type against the reference implementation in numpy of the `gguf` package: equal to the last bit."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest

from xlaserve.models import gguf_quants
from xlaserve.models.gguf_quants import TYPES, GgufType, dequantize

QUANTIZED = {number: kind for number, kind in TYPES.items() if kind.expand is not None}


def random_blocks(kind: GgufType, count: int, seed: int) -> np.ndarray:
    """Random bytes in every field, except that scale factors are finite."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, count * kind.layout.itemsize, dtype=np.uint8).view(kind.layout)
    for field in ("d", "m", "dmin"):
        if field in (kind.layout.names or ()):
            blocks[field] = generator.normal(0, 0.1, count).astype(np.float16)
    return blocks.view(np.uint8)


@pytest.mark.parametrize("number", QUANTIZED, ids=lambda number: TYPES[number].name)
def test_equals_the_reference_to_the_last_bit(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_quants, "SLAB_VALUES", 1024)  # several slabs, the last of them partial
    kind = TYPES[number]
    shape = (13, 3 * kind.block_size)
    data = random_blocks(kind, 13 * 3, number)
    expected = gguf.dequantize(data.reshape(13, -1), gguf.GGMLQuantizationType(number)).reshape(shape)
    result = dequantize(data, kind, shape)
    assert result.dtype == np.float32
    assert result.shape == shape
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("number", TYPES, ids=lambda number: TYPES[number].name)
def test_type_table_equals_the_reference(number: int) -> None:
    kind = gguf.GGMLQuantizationType(number)
    assert TYPES[number].name == kind.name
    assert (TYPES[number].block_size, TYPES[number].layout.itemsize) == gguf.GGML_QUANT_SIZES[kind]


def test_unsupported_types_have_their_names() -> None:
    for number, name in gguf_quants.UNSUPPORTED_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert number not in TYPES


@pytest.mark.parametrize(("number", "dtype"), [(0, np.float32), (1, np.float16), (30, ml_dtypes.bfloat16)])
def test_plain_types_are_views(number: int, dtype: type) -> None:
    array = np.arange(6).astype(dtype)
    data = array.view(np.uint8)
    result = dequantize(data, TYPES[number], (2, 3))
    assert result.dtype == np.dtype(dtype)
    assert np.shares_memory(result, array)
