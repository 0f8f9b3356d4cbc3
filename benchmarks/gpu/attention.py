"""Attention of one layer alone, over a pool that is already written: every implementation, and the kernel with several sizes of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import timing
from benchmarks.gpu.scale import Scale
from xlaserve.paged import mosaic_attention as kernel
from xlaserve.paged.attention import READERS, StepShape

HEADS, GROUPS, HEAD_DIM, BLOCK = 8, 4, 128, 16
SIZES = ((2, 8, 4), (3, 8, 4), (4, 8, 4), (2, 4, 4), (2, 16, 4), (2, 8, 2), (2, 8, 8))
"""Stages, splits and fewest tiles of the kernel that are tried."""


def measure(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds, bytes a second of KV in use, and the largest relative error of a row against float32."""
    lines: list[dict[str, Any]] = []
    kinds = ["tiled", "gather"] if scale.device == "cpu" else ["mosaic", "tiled", "gather"]
    shapes = [
        ("generate", scale.rows, 1, scale.context),
        ("generate", 1, 1, scale.context),
        ("generate", scale.rows, 1, scale.prompt),
        ("generate", 1, 1, scale.prompt),
        ("context", 1, scale.prompt // 4, scale.prompt),
    ]
    for name, rows, length, context in shapes:
        step = _step(rows, length, context)
        for kind in kinds:
            lines.append(_line(f"{name}-{rows}x{length}", kind, step, context))
            say(str(lines[-1]))
    for window, softcap in ((512, None), (None, 30.0)):
        step = _step(4, 1, scale.context)
        for kind in kinds:
            lines.append(_line(f"window {window}, softcap {softcap}", kind, step, scale.context, window, softcap))
            say(str(lines[-1]))
    if "mosaic" in kinds:
        own = kernel.STAGES, kernel.SPLITS, kernel.FEWEST_TILES
        for sizes in SIZES:
            kernel.STAGES, kernel.SPLITS, kernel.FEWEST_TILES = sizes
            kernel.make_kernel.cache_clear()
            for rows in (1, scale.rows):
                step = _step(rows, 1, scale.context)
                line = _line(
                    f"generate-{rows}x1, stages {sizes[0]}, splits {sizes[1]}, fewest {sizes[2]}",
                    "mosaic",
                    step,
                    scale.context,
                    checked=False,
                )
                lines.append(line)
                say(str(line))
        kernel.STAGES, kernel.SPLITS, kernel.FEWEST_TILES = own
        kernel.make_kernel.cache_clear()
    return {"lines": lines}


def _step(rows: int, length: int, context: int) -> tuple[Any, ...]:
    """Queries, pools, tables and positions; each row has `context` tokens in blocks of its own, in a random order."""
    rng, each = np.random.default_rng(0), -(-context // BLOCK)
    keys = jax.random.split(jax.random.key(0), 3)
    pools = [jax.random.normal(key, (rows * each + 1, HEADS, BLOCK, HEAD_DIM), jnp.bfloat16) for key in keys[:2]]
    q = jax.random.normal(keys[2], (rows, HEADS, GROUPS * length, HEAD_DIM)) * HEAD_DIM**-0.5
    tables = rng.permutation(np.arange(1, rows * each + 1, dtype=np.int32)).reshape(rows, each)
    positions = np.full((rows, 1), context - length, np.int32) + np.arange(length, dtype=np.int32)
    return q.astype(jnp.bfloat16), *pools, jnp.asarray(tables), jnp.asarray(positions)


def _line(
    name: str,
    kind: str,
    step: tuple[Any, ...],
    context: int,
    window: int | None = None,
    softcap: float | None = None,
    *,
    checked: bool = True,
) -> dict[str, Any]:
    def read(reader: str, dtype: Any) -> Callable[..., Any]:
        def run(q: Any, keys: Any, values: Any, tables: Any, positions: Any) -> Any:
            return READERS[reader](
                q.astype(dtype), keys.astype(dtype), values.astype(dtype), StepShape(positions, tables, BLOCK), window, softcap
            )

        return run

    line: dict[str, Any] = {"what": name, "kind": kind, "context": context}
    rows, queries = step[0].shape[0], step[0].shape[2]
    try:
        run = timing.compiled(read(kind, jnp.bfloat16), *step)
        taken = timing.seconds(run)
        errors = _errors(run, read("tiled", jnp.float32), step) if checked else None
    except Exception as error:  # one form that does not run must not cost the others
        return {**line, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    seen = min(context, window or context)
    read_bytes = 2 * 2 * rows * HEADS * HEAD_DIM * seen
    length = queries // GROUPS
    # Windows are tried with single tokens only.
    pairs = rows * HEADS * GROUPS * (length * context - length * (length - 1) // 2 if window is None else seen)
    return {
        **line,
        "ms": 1e3 * taken["median"],
        "ms_min": 1e3 * taken["min"],
        "ms_max": 1e3 * taken["max"],
        "kv_bytes_per_s": read_bytes / taken["median"],
        "flops_per_s": 4 * HEAD_DIM * pairs / taken["median"],
        "error": errors,
    }


def _errors(run: Callable[[], Any], reference: Callable[..., Any], step: tuple[Any, ...]) -> float:
    """The largest relative error of the first row's results."""
    small = [*(step[at][:1] if at in (0, 3, 4) else step[at] for at in range(5))]
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(jax.jit(reference)(*small), np.float32)[0]
    found = np.asarray(run()[:1], np.float32)[0]
    return float((np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max())
