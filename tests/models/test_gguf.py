from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.gguf_writer import gguf_bytes, string, write_gguf
from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.gguf import GgufFile

METADATA: dict[str, Any] = {
    "general.name": "Tïny",
    "a.count": 7,
    "a.eps": 1e-5,
    "a.flag": True,
    "a.words": ["one", "", "日本"],
    "a.scores": np.array([1.5, -2.0], np.float32),
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_reads_metadata_and_tensors(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.arange(5).astype(np.float16),
        "z": np.ones((1, 2), ml_dtypes.bfloat16),
    }
    metadata = METADATA | ({"general.alignment": alignment} if alignment != 32 else {})
    file = GgufFile(write_gguf(tmp_path / "m.gguf", metadata, tensors, version=version, alignment=alignment))
    assert file.metadata["general.name"] == "Tïny"
    assert file.metadata["a.count"] == 7
    assert file.metadata["a.eps"] == 1e-5, "a stored float32 must come back in its shortest form"
    assert file.metadata["a.flag"] is True
    assert file.metadata["a.words"] == ["one", "", "日本"]
    assert file.metadata["a.scores"].tolist() == [1.5, -2.0]
    for name, array in tensors.items():
        read = file.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
        assert not read.flags.writeable, "unquantized tensors are views of the mapped file"
    file.close()


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = gguf_bytes(METADATA, {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.arange(8).astype(np.float32)})
    for length in range(len(whole)):
        (tmp_path / "m.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            GgufFile(tmp_path / "m.gguf")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(gguf_bytes(METADATA, {"x": np.ones((2, 3), np.float32), "q": (8, (1, 32), b"\0" * 34)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flip.gguf"
    path.write_bytes(content)
    try:
        file = GgufFile(path)
    except CheckpointError:
        return
    for name in file.tensors:
        file.read(name)
    file.close()


def tensor_info(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def raw(infos: list[bytes], data: bytes, pairs: tuple[bytes, ...] = ()) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    return header + b"\0" * (-len(header) % 32) + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + b"\0" * 40, "is not a GGUF file: it starts with b'GGML'"),
        (raw([tensor_info("t", (4,), 0, 0)] * 2, b"\0" * 64), "the tensor 't' is there twice"),
        (raw([tensor_info("t", (4,), 0, 0), tensor_info("u", (4,), 0, 0)], b"\0" * 64), "'u' starts at byte .*, inside 't'"),
        (raw([tensor_info("t", (4,), 0, 8)], b"\0" * 64), "offset 8, which is not a multiple of the alignment 32"),
        (raw([tensor_info("t", (0,), 0, 0)], b"\0" * 64), "'t' of type F32 has the shape \\(0,\\)"),
        (raw([tensor_info("t", (33,), 2, 0)], b"\0" * 64), "'t' of type Q4_0 has the shape \\(33,\\).*multiple of 32"),
        (raw([tensor_info("t", (1, 1, 1, 1, 1), 0, 0)], b"\0" * 64), "5 dimensions"),
        (raw([tensor_info("t", (2**40,), 0, 0)], b"\0" * 64), "'t' ends at byte .* truncated"),
        (raw([], b"", (string("k") + struct.pack("<IB", 0, 1),) * 2), "metadata key 'k' is there twice"),
        (raw([], b"", (string("k") + struct.pack("<II", 13, 1),)), "k has the value type 13"),
        (raw([], b"", (string("k") + struct.pack("<IIQ", 9, 8, 2**40),)), "claims 1099511627776 strings"),
        (raw([], b"", (string("k") + struct.pack("<IIQ", 9, 0, 2**40),)), "the array k needs 1099511627776 bytes"),
        (raw([], b"", (string("k") + struct.pack("<IIQQ", 9, 8, 1, 2**62),)), "string 0 of the array k ends at byte"),
        (raw([], b"", (string("k") + struct.pack("<IQ", 8, 2) + b"\xff\xff",)), "k is not valid UTF-8"),
        (raw([], b"", (string("general.alignment") + struct.pack("<II", 4, 3),)), "general.alignment must be a power of two, got 3"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        GgufFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (raw([tensor_info("t", (32,), 20, 0)], b"\0" * 64), "'t' has the type IQ4_NL; supported are F32, F16, Q4_0"),
        (gguf_bytes({"split.count": 3}, {}), "one of 3 parts of a split model"),
    ],
)
def test_what_is_not_implemented_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=message):
        GgufFile(tmp_path / "m.gguf")
