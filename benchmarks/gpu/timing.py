"""Seconds of compiled functions on a device, and what a device can do at most with numbers that are not all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.scale import Scale

RUNS, GROUP = 7, 10


def seconds(run: Callable[[], Any], group: int = GROUP) -> dict[str, float]:
    """Seconds of a run, dispatched `group` in a row as an engine does it: median, smallest and largest of several groups."""
    jax.block_until_ready(run())
    found: list[float] = []
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(group - 1):
            run()
        jax.block_until_ready(run())
        found.append((time.perf_counter() - began) / group)
    return {"median": median(found), "min": min(found), "max": max(found)}


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A function that has been compiled for these arguments."""
    ready = jax.jit(function).lower(*arguments).compile()
    return lambda: ready(*arguments)


def ceilings(scale: Scale) -> dict[str, Any]:
    """Bytes a second of a copy, read and written bytes counted, and operations a second of a product of two random matrices."""
    key = jax.random.key(0)
    array = jax.random.normal(key, (scale.copy_bytes // 2,), jnp.bfloat16)
    copy = seconds(compiled(lambda a: a + 1, array))
    square = jax.random.normal(key, (scale.gemm, scale.gemm), jnp.bfloat16)
    product = seconds(compiled(jnp.matmul, square, square))
    return {
        "copy_bytes_per_s": 2 * array.nbytes / copy["median"],
        "copy": copy,
        "gemm_flops_per_s": 2 * scale.gemm**3 / product["median"],
        "gemm": product,
    }
