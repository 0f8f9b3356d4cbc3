"""The parts, each of which runs alone in a process: it takes the sizes and gives what JSON can hold."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.variants import VARIANTS

Part = Callable[[Scale], dict[str, Any]]


def say(line: str) -> None:
    """A line for the log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def card() -> str:
    """The card's name; empty where there is none. JAX is not asked: it would take memory that a part is to have."""
    return _nvidia_smi("name")


def _nvidia_smi(fields: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def facts(scale: Scale) -> dict[str, Any]:
    """The card, its driver, the packages."""
    import jax

    from xlaserve.bench.machine import machine, versions

    shown = _nvidia_smi("name,driver_version,memory.total,clocks.sm,clocks.mem")
    device = jax.devices(scale.device)[0]
    return {"nvidia_smi": shown, "device": device.device_kind, "machine": machine(), "versions": versions(), "python": sys.version}


def ceilings(scale: Scale) -> dict[str, Any]:
    """Bandwidth and rate of operations that the card really has."""
    from benchmarks.gpu import timing

    return timing.ceilings(scale)


def graphs(scale: Scale, variant: str) -> dict[str, Any]:
    """Single graphs against their rooflines: one sequence and many, and a prompt."""
    from benchmarks.gpu.thunks import thunks
    from benchmarks.gpu.variants import settle

    with tempfile.TemporaryDirectory() as folder:
        options = settle(variant, folder)
        from xlaserve.bench.kernels import CeilingSizes, bench_kernels
        from xlaserve.engine.config import EngineConfig

        if variant == "gather":  # its graphs read whole tables: one width for each length of context, not one for each factor of two
            options["generate_buckets"] = (scale.context, scale.step_engine["max_model_len"])
        config = EngineConfig(**scale.step_engine, **options, compile_cache=f"{folder}/cache")
        names = ["generate-1-", f"generate-{scale.rows}-", f"context-1x{scale.prompt}-"]
        contexts = (scale.context, scale.prompt)
        began = time.monotonic()
        subject, metrics, skipped, text = bench_kernels(config, contexts, names, 5, CeilingSizes(scale.copy_bytes, scale.gemm), say)
        print(text)
        return {
            "subject": subject,
            "metrics": metrics,
            "skipped": skipped,
            "thunks": thunks(Path(folder)),
            "seconds": time.monotonic() - began,
        }


def attention(scale: Scale) -> dict[str, Any]:
    """Attention of one layer alone: right, and how fast, by implementation and by the kernel's sizes."""
    from benchmarks.gpu.attention import measure

    return measure(scale, say)


def serve(scale: Scale, variant: str) -> dict[str, Any]:
    """Requests that are all there at once, through the engine in this process; and how long the device waits between iterations."""
    from benchmarks.gpu.serving import xlaserve_load

    return xlaserve_load(scale, "none" if scale.device == "cpu" else VARIANTS[variant].kernels, say)


def transformers(scale: Scale) -> dict[str, Any]:
    """The same requests through transformers' continuous batching."""
    from benchmarks.gpu.serving import transformers_load

    return transformers_load(scale, say)


def vllm(scale: Scale) -> dict[str, Any]:
    """The same requests through vLLM, where it is installed."""
    from benchmarks.gpu.vllm_serving import vllm_load

    return vllm_load(scale, say)


def tuning(scale: Scale) -> dict[str, Any]:
    """Graphs compiled here, where their kernels are measured; compiled again without the card from what was measured; and that timed."""
    from benchmarks.gpu.artifact import carried

    return carried(scale, say)


def artifact(scale: Scale) -> dict[str, Any]:
    """Executables that were made on a machine without the card: whether they load here, and how fast they are."""
    from benchmarks.gpu.artifact import measure

    return measure(scale, os.environ.get("XLASERVE_GPU_ARTIFACT"), say)


def exact(scale: Scale) -> dict[str, Any]:
    """Greedy tokens and log probabilities of one model in float32 and bfloat16: against each other, and by form of attention."""
    from benchmarks.gpu.exactness import measure

    return measure(scale, say)


def reference(scale: Scale, dtype: str, kernels: str) -> dict[str, Any]:
    """Log probabilities of models of every family, held against transformers' on the same device."""
    from benchmarks.gpu.reference import measure

    return measure(scale, dtype, kernels, say)


PARTS: dict[str, tuple[Part, int]] = {
    "facts": (facts, 60),
    "ceilings": (ceilings, 90),
    "attention": (attention, 180),
    "graphs-mosaic": (partial(graphs, variant="mosaic"), 240),
    "graphs-tiled": (partial(graphs, variant="tiled"), 240),
    "exact": (exact, 180),
    "reference-float32": (partial(reference, dtype="float32", kernels="none"), 240),
    "reference-mosaic": (partial(reference, dtype="bfloat16", kernels="native"), 240),
    "artifact": (artifact, 180),
    "tuning": (tuning, 420),
    "serve-mosaic": (partial(serve, variant="mosaic"), 300),
    "transformers": (transformers, 240),
    "vllm": (vllm, 300),
    "graphs-mosaic-cublas": (partial(graphs, variant="mosaic-cublas"), 240),
    "graphs-gather": (partial(graphs, variant="gather"), 240),
    "graphs-mosaic-untold": (partial(graphs, variant="mosaic-untold"), 240),
    "graphs-tiled-untold": (partial(graphs, variant="tiled-untold"), 240),
    "serve-tiled": (partial(serve, variant="tiled"), 300),
    "reference-tiled": (partial(reference, dtype="bfloat16", kernels="none"), 240),
}
"""Most wanted first, with the seconds that each may take."""
