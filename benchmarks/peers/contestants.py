"""Who is compared: each engine with each form of the weights, in groups of the same bits per weight."""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.places import environment, interpreter, model_path
from benchmarks.peers.workload import MAX_MODEL_LEN, MAX_REQUESTS

ENGINES = "benchmarks.peers.engines"


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine: its class as `module:Class`, the virtual environment it lives in (None is this one), and environment variables."""

    name: str
    engine: str
    environment: str | None
    variables: Callable[[Path], Mapping[str, str]] = lambda place: {}


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine with one form of the weights.

    Args:
        kind: the engine.
        group: the form's place in the comparison, one of `GROUPS`.
        weights: what the form is called, for tables.
        form: which of `models.model_path`.
        dtype: asked of the engine, or None where the form says all.
        quantization: asked of the engine.
    """

    kind: Kind
    group: str
    weights: str
    form: str
    dtype: str | None = None
    quantization: str | None = None

    @property
    def name(self) -> str:
        """Unique among contestants."""
        return f"{self.kind.name} {self.weights}"

    def setup(self, directory: Path, cpus: tuple[int, ...]) -> dict[str, Any]:
        """The fields of a `Setup`, for JSON.

        Args:
            directory: that holds peers and models.
            cpus: that the engine may use.
        """
        return {
            "model": str(model_path(directory, self.form)),
            "dtype": self.dtype,
            "quantization": self.quantization,
            "cpus": list(cpus),
            "max_model_len": MAX_MODEL_LEN,
            "max_requests": MAX_REQUESTS,
        }

    def python(self, directory: Path) -> Path:
        """The Python that has the engine."""
        place = self.kind.environment
        return Path(sys.executable) if place is None else interpreter(directory, place)

    def process_environment(self, directory: Path, cpus: tuple[int, ...]) -> dict[str, str]:
        """The environment variables of its process."""
        own = self.kind.variables(environment(directory, self.kind.environment)) if self.kind.environment else {}
        return {**os.environ, "OMP_NUM_THREADS": str(len(cpus)), "HF_HUB_OFFLINE": "1", **own}


def _vllm_variables(place: Path) -> dict[str, str]:
    """Intel's OpenMP from its virtual environment and the system's tcmalloc, as vLLM's instructions for CPUs have it."""
    libraries = [ctypes.util.find_library("tcmalloc_minimal"), str(place / "lib" / "libiomp5.so")]
    return {"LD_PRELOAD": ":".join(library for library in libraries if library)}


XLASERVE = Kind("xlaserve", f"{ENGINES}.xlaserve_engine:XlaserveEngine", None)
VLLM = Kind("vLLM", f"{ENGINES}.vllm_engine:VllmEngine", "vllm", _vllm_variables)
TRANSFORMERS = Kind("transformers", f"{ENGINES}.transformers_engine:TransformersEngine", "transformers")
LLAMA_CPP = Kind("llama.cpp", f"{ENGINES}.llama_cpp_engine:LlamaCppEngine", "llama.cpp")

GROUPS = {"float32": "32 bits per weight", "bfloat16": "16 bits per weight", "int8": "8 bits per weight"}
CONTESTANTS = (
    Contestant(XLASERVE, "float32", "float32", "float32", dtype="float32"),
    Contestant(VLLM, "float32", "float32", "float32", dtype="float32"),
    Contestant(TRANSFORMERS, "float32", "float32", "float32", dtype="float32"),
    Contestant(LLAMA_CPP, "float32", "F32", "F32"),
    Contestant(XLASERVE, "bfloat16", "bfloat16", "bfloat16", dtype="bfloat16"),
    Contestant(VLLM, "bfloat16", "bfloat16", "bfloat16", dtype="bfloat16"),
    Contestant(TRANSFORMERS, "bfloat16", "bfloat16", "bfloat16", dtype="bfloat16"),
    Contestant(LLAMA_CPP, "bfloat16", "BF16", "BF16"),
    Contestant(LLAMA_CPP, "bfloat16", "F16", "F16"),
    Contestant(XLASERVE, "int8", "int8", "float32", quantization="int8"),
    Contestant(LLAMA_CPP, "int8", "Q8_0", "Q8_0"),
)
