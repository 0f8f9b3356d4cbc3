"""The forms of a model hold the same weights, as nearly as their types can, with the same configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from benchmarks.peers.models import DTYPES, GGUF_TYPES, write_directory, write_gguf
from tests.models import gguf_writer
from xlaserve.models.checkpoint import open_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return gguf_writer.write_gguf(tmp_path / "source.gguf", gguf_writer.llama_metadata(), gguf_writer.llama_tensors())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_directory_is_the_same_model(source: Path, tmp_path: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(source)
    write_directory(checkpoint, dtype, tmp_path / "directory")
    written = open_checkpoint(tmp_path / "directory")
    assert written.config == {**checkpoint.config, "dtype": dtype}
    assert written.eos_token_ids == checkpoint.eos_token_ids
    assert written.tensors.keys() == checkpoint.tensors.keys()
    for name in checkpoint.tensors:
        expected = checkpoint.read(name).astype(DTYPES[dtype])
        np.testing.assert_array_equal(written.read(name).astype(np.float32), expected.astype(np.float32), err_msg=name)
    text = "Hello  world, 12 + 30 = 42"
    assert written.tokenizer().encode(text) == checkpoint.tokenizer().encode(text)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_a_gguf_file_is_the_same_model(tmp_path: Path, kind: str) -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    vector = np.linspace(0, 1, 64, dtype=np.float32)
    metadata = {**gguf_writer.llama_metadata(), "general.file_type": 3}
    source = gguf_writer.write_gguf(tmp_path / "source.gguf", metadata, {"blk.0.ffn_up.weight": matrix, "output_norm.weight": vector})
    write_gguf(source, kind, tmp_path / "written.gguf")

    before, after = GGUFReader(source), GGUFReader(tmp_path / "written.gguf")
    assert {name: field.contents() for name, field in after.fields.items() if not name.startswith("GGUF.")} == {
        **{name: field.contents() for name, field in before.fields.items() if not name.startswith("GGUF.")},
        "general.file_type": int(GGUF_TYPES[kind][1]),
    }
    found = {tensor.name: tensor for tensor in after.tensors}
    assert found["blk.0.ffn_up.weight"].tensor_type == GGUF_TYPES[kind][0]
    assert found["blk.0.ffn_up.weight"].shape.tolist() == [64, 6]
    np.testing.assert_array_equal(found["output_norm.weight"].data, vector)
    weights = dequantize(found["blk.0.ffn_up.weight"].data, GGUF_TYPES[kind][0]).reshape(6, 64)
    if kind == "Q8_0":
        blocks = np.abs(matrix).reshape(6, 2, 32).max(axis=2, keepdims=True) / 127
        assert (np.abs(weights - matrix).reshape(6, 2, 32) <= 0.51 * blocks).all()
    else:
        rounded = {"F32": matrix, "F16": matrix.astype(np.float16), "BF16": matrix.astype(ml_dtypes.bfloat16)}[kind]
        np.testing.assert_array_equal(weights, rounded.astype(np.float32))


def test_xlaserve_reads_what_was_written(source: Path, tmp_path: Path) -> None:
    write_gguf(source, "F32", tmp_path / "written.gguf")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "written.gguf")
    assert after.config == before.config
    for name in before.tensors:
        np.testing.assert_array_equal(after.read(name), before.read(name), err_msg=name)
