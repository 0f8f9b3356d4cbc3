"""Writes small GGUF files for tests, byte by byte after the format's description, so that the reader is not tested against itself."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FLOAT_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 30}


def string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """One metadata value with its type in front: bool, int (u32), float (f32), str, or a list of one of them."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, np.ndarray):
        kind = {"f": 6, "i": 5, "b": 7}[item.dtype.kind]
        return struct.pack("<IIQ", 9, kind, len(item)) + item.tobytes()
    return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(string(text) for text in item)


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | tuple[int, Sequence[int], bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """The bytes of a GGUF file.

    Args:
        metadata: key to value.
        tensors: name to a float array, or to (type number, row-major shape, packed bytes).
    """
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(string(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            tensor = (FLOAT_TYPES[tensor.dtype], tensor.shape, tensor.tobytes())
        kind, shape, content = tensor
        header += (
            string(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *reversed(shape))
            + struct.pack("<IQ", kind, len(data))
        )
        data += content + b"\0" * (-len(content) % alignment)
    return header + b"\0" * (-len(header) % alignment) + data


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any], **options: Any) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, **options))
    return path


def byte_level_vocabulary() -> list[str]:
    """The 256 single-byte tokens of a byte-level vocabulary, in byte order."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in own]
    return [chr(byte) if byte in own else chr(256 + moved.index(byte)) for byte in range(256)]


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Metadata of a tiny llama model with a byte-level tokenizer and two special tokens; None removes a key."""
    tokens = [*byte_level_vocabulary(), "he", "ll", "hell", "Ġhe", "<|im_start|>", "<|im_end|>"]
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (len(tokens) - 2) + [3, 3], np.int32),
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "Ġ he"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}",
    }
    return {key: item for key, item in (metadata | changes).items() if item is not None}


def llama_tensors(vocab: int = 262) -> dict[str, np.ndarray]:
    """Tensors for `llama_metadata`, in GGUF's names and layout, with values that tell positions apart."""
    shapes = {
        "token_embd.weight": (vocab, 8),
        "output_norm.weight": (8,),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (4, 8),
        "blk.0.attn_v.weight": (4, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.ffn_gate.weight": (16, 8),
        "blk.0.ffn_up.weight": (16, 8),
        "blk.0.ffn_down.weight": (8, 16),
    }
    return {
        name: (np.arange(np.prod(shape), dtype=np.float32) + index * 0.25).reshape(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }
