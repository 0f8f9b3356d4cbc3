from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.gguf_writer import llama_metadata, llama_tensors, write_gguf
from xlaserve.errors import CheckpointError
from xlaserve.models.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from xlaserve.models.gguf_names import sources
from xlaserve.models.gguf_tokenizer import tokenizer_from_gguf


def gguf(path: Path, **changes: Any) -> Checkpoint:
    return open_checkpoint(write_gguf(path, llama_metadata(**changes), llama_tensors()))


def hf_directory(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    save_file(tensors, path / "model.safetensors")
    tokenizer_from_gguf(llama_metadata()).save(str(path / "tokenizer.json"))
    return path


def test_a_gguf_file_looks_like_the_directory_it_came_from(tmp_path: Path) -> None:
    converted = gguf(tmp_path / "tiny.gguf")
    stored = llama_tensors()
    names = sources(list(stored), "llama", 2, 1)
    original = open_checkpoint(
        hf_directory(tmp_path / "tiny", converted.config, {name: names[name].restore(stored[names[name].name]) for name in names})
    )
    assert converted.tensors == original.tensors
    assert converted.fingerprint() == original.fingerprint()
    for name, info in converted.tensors.items():
        array = converted.read(name)
        assert TensorInfo(array.shape, "F32") == info
        np.testing.assert_array_equal(array, original.read(name))
    assert converted.name == original.name == "tiny"
    text = "hell 12 <|im_end|>é"
    assert converted.tokenizer().encode(text) == original.tokenizer().encode(text)


def test_rope_rows_are_back_in_hugging_face_order(tmp_path: Path) -> None:
    """Two heads of 4 rows: llama.cpp keeps rows (0, 2, 1, 3) of each head."""
    checkpoint = gguf(tmp_path / "tiny.gguf")
    stored = llama_tensors()
    np.testing.assert_array_equal(
        checkpoint.read("model.layers.0.self_attn.q_proj.weight"), stored["blk.0.attn_q.weight"][[0, 2, 1, 3, 4, 6, 5, 7]]
    )
    np.testing.assert_array_equal(checkpoint.read("model.layers.0.self_attn.k_proj.weight"), stored["blk.0.attn_k.weight"][[0, 2, 1, 3]])
    np.testing.assert_array_equal(checkpoint.read("model.layers.0.self_attn.v_proj.weight"), stored["blk.0.attn_v.weight"])


def test_gguf_quantized_tensors_come_as_fresh_float32(tmp_path: Path) -> None:
    metadata = llama_metadata(**{"llama.embedding_length": 32, "llama.rope.dimension_count": 16})
    packed = np.tile(np.concatenate([np.array([0.5], np.float16).view(np.uint8), np.arange(32, dtype=np.uint8)]), 262)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "q.gguf", metadata, {"token_embd.weight": (8, (262, 32), packed.tobytes())}))
    assert checkpoint.tensors == {"model.embed_tokens.weight": TensorInfo((262, 32), "Q8_0")}
    array = checkpoint.read("model.embed_tokens.weight")
    assert array.dtype == np.float32
    assert array.flags.writeable
    np.testing.assert_array_equal(array[7], np.arange(32) * 0.5)
    assert checkpoint.read("model.embed_tokens.weight") is not array
    with pytest.raises(KeyError):
        checkpoint.read("lm_head.weight")


def test_safetensors_are_views_in_the_stored_type(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    checkpoint = open_checkpoint(hf_directory(tmp_path / "m", {"model_type": "llama"}, {"model.norm.weight": weight}))
    assert checkpoint.tensors == {"model.norm.weight": TensorInfo((3, 4), "BF16")}
    array = checkpoint.read("model.norm.weight")
    assert array.dtype == np.dtype(ml_dtypes.bfloat16)
    assert np.shares_memory(array, checkpoint.read("model.norm.weight"))
    checkpoint.close()
    np.testing.assert_array_equal(array, weight)


def test_gguf_chat(tmp_path: Path) -> None:
    tokenizer = gguf(tmp_path / "tiny.gguf").tokenizer()
    prompt = tokenizer.render_chat([{"role": "user", "content": "hell"}])
    assert prompt == "<|im_start|>user\nhell<|im_end|>\n"
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert ids[0] == tokenizer.bos_token_id == 260
    assert 261 in ids
    named = gguf(tmp_path / "two.gguf", **{"tokenizer.chat_template.tool_use": "{{ bos_token }}{{ eos_token }}"}).tokenizer()
    assert named.render_chat([{"role": "user", "content": "x"}], tools=[{}]) == "<|im_start|><|im_end|>"


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": [2, 3]}, {}, (2, 3)),
        ({"eos_token_id": 2}, {"eos_token_id": [1, 106]}, (1, 106)),
        ({"eos_token_id": 2}, {"eos_token_id": 0}, (0,)),
        ({"eos_token_id": None}, {"eos_token_id": []}, ()),
        ({}, None, ()),
    ],
)
def test_end_of_sequence_ids(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...]) -> None:
    files = {} if generation is None else {"generation_config": generation}
    checkpoint = open_checkpoint(hf_directory(tmp_path / "m", config, {"a": np.ones(1, np.float32)}, **files))
    assert checkpoint.eos_token_ids == expected


def test_the_fingerprint_depends_on_config_and_tensors_but_not_on_contents(tmp_path: Path) -> None:
    def fingerprint(config: dict[str, Any], **tensors: np.ndarray) -> str:
        return open_checkpoint(hf_directory(tmp_path / "m", config, tensors)).fingerprint()

    base = fingerprint({"a": 1, "b": 2}, x=np.ones(2, np.float32))
    assert fingerprint({"b": 2, "a": 1}, x=np.zeros(2, np.float32)) == base
    assert fingerprint({"a": 1, "b": 3}, x=np.ones(2, np.float32)) != base
    assert fingerprint({"a": 1, "b": 2}, x=np.ones(3, np.float32)) != base
    assert fingerprint({"a": 1, "b": 2}, x=np.ones(2, np.float16)) != base
    assert fingerprint({"a": 1, "b": 2}, y=np.ones(2, np.float32)) != base


def test_configs_that_cannot_be_read(tmp_path: Path) -> None:
    path = hf_directory(tmp_path / "m", {}, {"a": np.ones(1, np.float32)})
    (path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json: is not valid JSON"):
        open_checkpoint(path)
    (path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: must hold a JSON object, got list"):
        open_checkpoint(path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        open_checkpoint(path)
