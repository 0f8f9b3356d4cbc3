from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.safetensors import DTYPES, SafetensorsDirectory, SafetensorsFile


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WRITABLE = (
    [np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16, np.float32, np.float64],
    [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2],
)


@pytest.mark.parametrize("dtype", [dtype for group in WRITABLE for dtype in group])
def test_reads_what_the_reference_library_writes(tmp_path: Path, dtype: Any) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save_file(
        {"a": array, "scalar": np.array(3).astype(dtype), "empty": np.zeros((0, 5), dtype)}, tmp_path / "m.safetensors", {"format": "pt"}
    )
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert set(file.tensors) == {"a", "scalar", "empty"}
    read = file.read("a")
    assert read.dtype == np.dtype(dtype)
    assert read.tobytes() == array.tobytes()
    assert read.shape == (2, 3, 4)
    assert file.read("scalar").shape == ()
    assert file.read("empty").shape == (0, 5)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type_of_the_format_has_its_width(tmp_path: Path, name: str) -> None:
    size = DTYPES[name].itemsize * 6
    file = SafetensorsFile(
        write(tmp_path / "m.safetensors", {"t": entry(name, [2, 3], 0, size)}, bytes(range(size % 256 or 1)) * (size // (size % 256 or 1)))
    )
    assert file.read("t").dtype == DTYPES[name]
    assert file.read("t").nbytes == size


def test_views_share_the_mapped_file_and_cannot_be_written(tmp_path: Path) -> None:
    save_file({"a": np.arange(1000, dtype=np.float32)}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    first, second = file.read("a"), file.read("a")
    assert np.shares_memory(first, second)
    assert not first.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_views_outlive_close(tmp_path: Path) -> None:
    save_file({"a": np.arange(1000, dtype=np.float32)}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    view = file.read("a")
    file.close()
    assert view.sum() == 499500


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"t": entry("F32", [2], 0, 4)}, b"\0" * 4, "tensor 't' of shape \\[2\\] and type F32 needs 8 bytes, but spans 4"),
        ({"t": entry("F32", [2], 0, 8)}, b"\0" * 4, "'t' ends at byte 8, but the file holds 4"),
        ({"t": entry("F32", [1], 4, 0)}, b"\0" * 4, "'t' has the data_offsets \\[4, 0\\]"),
        ({"t": entry("F32", [-1], 0, 4)}, b"\0" * 4, "'t' has the shape \\[-1\\]"),
        ({"t": entry("F32", [True], 0, 4)}, b"\0" * 4, "'t' has the shape \\[True\\]"),
        ({"t": entry("F32", [1], 0, 4) | {"data_offsets": [0, 4, 8]}}, b"\0" * 4, "'t' has the data_offsets"),
        ({"t": {"dtype": "F32", "shape": [1]}}, b"", "'t' needs dtype, shape and data_offsets"),
        ({"t": 3}, b"", "'t' needs dtype, shape and data_offsets"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, b"\0" * 8, "'b' starts at byte 4 and overlaps"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"\0" * 12, "'b' starts at byte 8 and leaves a hole"),
        ({"a": entry("F32", [1], 0, 4)}, b"\0" * 9, "5 bytes after the last tensor"),
        ([1], b"", "must be a JSON object, got list"),
        (b"{not json", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "the key 'a' is there twice"),
        (b"[" * 100_000, b"", "not valid JSON"),
        ({"t": entry("F32", [2**62, 2**62], 0, 4)}, b"\0" * 4, "needs .* bytes, but spans 4"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_unknown_type_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'t' has the type 'F4'"):
        SafetensorsFile(write(tmp_path / "m.safetensors", {"t": entry("F4", [2], 0, 1)}, b"\0"))


def test_header_length_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CheckpointError, match="claims 9223372036854775808 bytes"):
        SafetensorsFile(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    save_file({"a": np.arange(3, dtype=np.float32), "b": np.ones(2, np.int8)}, tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(tmp_path / "cut.safetensors")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flip.safetensors"
    save_file({"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.int8)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    for name in file.tensors:
        file.read(name)
    file.close()


def shards(directory: Path, **files: dict[str, np.ndarray]) -> dict[str, str]:
    for name, tensors in files.items():
        save_file(tensors, directory / f"{name}.safetensors")
    return {tensor: f"{name}.safetensors" for name, tensors in files.items() for tensor in tensors}


def test_shards_are_one_mapping(tmp_path: Path) -> None:
    weight_map = shards(tmp_path, one={"a": np.arange(3, dtype=np.float32)}, two={"b": np.ones(2, np.int8), "c": np.zeros(1, np.int8)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 15}, "weight_map": weight_map}))
    model = SafetensorsDirectory(tmp_path)
    assert set(model.tensors) == {"a", "b", "c"}
    np.testing.assert_array_equal(model.read("a"), [0, 1, 2])
    np.testing.assert_array_equal(model.read("b"), [1, 1])
    model.close()


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    weight_map = shards(tmp_path, one={"a": np.ones(1, np.int8), "b": np.ones(1, np.int8)}, two={"b": np.ones(1, np.int8)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"two.safetensors: tensor 'b' is also in one.safetensors"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "one.safetensors", "x": "one.safetensors"}}, "holds no tensor 'x'"),
        ({"weight_map": {"a": "missing.safetensors"}}, "names the shard missing.safetensors, which is not in"),
        ({"weight_map": {"a": "../one.safetensors"}}, "not the plain name"),
        ({"weight_map": {"a": 3}}, "not the plain name"),
        ({"weight_map": {}}, "needs a weight_map"),
        ([], "needs a weight_map"),
    ],
)
def test_damaged_index(tmp_path: Path, index: Any, message: str) -> None:
    shards(tmp_path, one={"a": np.ones(1, np.int8)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsDirectory(tmp_path)
