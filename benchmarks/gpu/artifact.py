"""Executables that are made on a machine without a card, and run on one.

    python -m benchmarks.gpu.artifact DIR [--target h100]      # on any machine with JAX's CUDA plugin: makes them

On the card `XLASERVE_GPU_ARTIFACT=DIR python -m benchmarks.gpu OUT --parts artifact` loads them, compiles nothing, and times them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.scale import CARD, Scale


def names(scale: Scale) -> list[str]:
    """Parts of the names of the graphs that are looked at."""
    return ["generate-1-", f"generate-{scale.rows}-", f"context-1x{scale.prompt}-"]


def make(folder: Path, target: str) -> None:
    """Compile for a card that is not here."""
    from xlaserve.buckets.targets import AbsentDevice, target_platform
    from xlaserve.engine.build import compile_graphs, make_plan, open_stores
    from xlaserve.engine.config import EngineConfig
    from xlaserve.errors import ConfigError

    config = EngineConfig(**CARD.step_engine, kernels="native", compile_threads=1)
    plan = make_plan(config, target_platform("cuda", target))
    if isinstance(device := plan.platform.devices()[0], AbsentDevice):  # StableHLO is all there would be
        raise ConfigError(f"no executables can be made here: {device.reason}")
    wanted = [bucket for bucket in plan.ladder.buckets if any(name in bucket.name for name in names(CARD))]
    context = tuple(bucket for bucket in plan.ladder.context if bucket in wanted)
    generate = tuple(bucket for bucket in plan.ladder.generate if bucket in wanted)
    plan = replace(plan, ladder=replace(plan.ladder, context=context, generate=generate))
    print(plan.describe())
    compile_graphs(plan, open_stores(plan, config, print, folder), config, print)


def measure(scale: Scale, folder: str | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Load what `make` has made, and time it as the part `graphs` does."""
    if folder is None:
        return {"error": "XLASERVE_GPU_ARTIFACT names no directory: not run"}
    from xlaserve.bench.kernels import CeilingSizes, bench_kernels
    from xlaserve.engine.config import EngineConfig

    config = EngineConfig(**scale.step_engine, kernels="native", artifacts=folder, artifacts_only=True)
    began = time.monotonic()
    sizes = CeilingSizes(scale.copy_bytes, scale.gemm)
    subject, metrics, skipped, text = bench_kernels(config, (scale.context, scale.prompt), names(scale), 5, sizes, say)
    print(text)
    return {"subject": subject, "metrics": metrics, "skipped": skipped, "seconds": time.monotonic() - began}


def main() -> int:
    """Make the artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the directory to make")
    parser.add_argument("--target", default="h100", help="the card (default: h100)")
    args = parser.parse_args()
    make(args.folder, args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
