"""The demo model in the forms that the peers read: all engines compute with the same weights.

    python -m benchmarks.peers.models [--directory DIR]

The demo's GGUF file holds 4-bit weights. They are widened to float32, which loses nothing, and every form is made from these: directories
as Hugging Face has them in float32 and bfloat16, and GGUF files in F32, F16, BF16 and Q8_0. Takes 2 GB of disk and a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

from benchmarks.peers.places import DIRECTORY, model_path
from xlaserve.models.checkpoint import Checkpoint, open_checkpoint
from xlaserve.models.demo import demo_gguf

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
GGUF_TYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_directory(checkpoint: Checkpoint, dtype: str, directory: Path) -> None:
    """Write a model as Hugging Face has it.

    Args:
        checkpoint: the model.
        dtype: of its weights, one of `DTYPES`.
        directory: where to; it is made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(checkpoint.read(name).astype(DTYPES[dtype])) for name in checkpoint.tensors}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = checkpoint.tokenizer()
    files = {
        "config.json": {**checkpoint.config, "dtype": dtype},
        "generation_config.json": checkpoint.generation_config,
        "tokenizer_config.json": {
            **tokenizer.named_tokens,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": tokenizer.chat_template,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    (directory / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")


def write_gguf(source: Path, kind: str, path: Path) -> None:
    """Write a GGUF file with the metadata of another and its weights in another type.

    Vectors (the norms) stay float32, as llama.cpp's own quantizer leaves them.

    Args:
        source: the other file.
        kind: type of its matrices, one of `GGUF_TYPES`.
        path: where to.
    """
    reader = GGUFReader(source)
    writer = GGUFWriter(path, arch=reader.fields[Keys.General.ARCHITECTURE].contents(), use_temp_file=False)
    stored, file_type = GGUF_TYPES[kind]
    for name, field in reader.fields.items():
        if name == Keys.General.ARCHITECTURE or name.startswith("GGUF."):
            continue  # the writer's own
        value = int(file_type) if name == Keys.General.FILE_TYPE else field.contents()
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], sub_type=element)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        matrix = weights.reshape([int(size) for size in reversed(tensor.shape)])
        if matrix.ndim < 2 or kind == "F32":
            writer.add_tensor(tensor.name, matrix)
        else:
            # Bytes of a block type, float16 numbers otherwise: the writer tells their shape from them.
            writer.add_tensor(tensor.name, quantize(matrix, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write the forms that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help=f"that holds the peers (default: {DIRECTORY})")
    directory: Path = parser.parse_args().directory
    source = demo_gguf()
    (directory / "models").mkdir(parents=True, exist_ok=True)
    for form in (*DTYPES, *GGUF_TYPES):
        path = model_path(directory, form)
        if path.exists():
            continue
        print(f"{path} ...", flush=True)
        # Under another name until it is whole.
        unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
        if form in DTYPES:
            write_directory(open_checkpoint(source), form, unfinished)
        else:
            write_gguf(source, form, unfinished)
        unfinished.rename(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
