"""Executables that are made on a machine without a card, and run on one.

    python -m benchmarks.gpu.artifact DIR [--target h100] [--kernels native] [--tuning MEASURED]    # wherever JAX's CUDA plugin is

On the card `XLASERVE_GPU_ARTIFACT=DIR python -m benchmarks.gpu OUT --parts artifact` loads them, compiles nothing, and times them.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.scale import CARD, Scale
from xlaserve.buckets.store import TUNING
from xlaserve.buckets.tuning import decode_results
from xlaserve.platforms.platform import KernelsChoice


def names(scale: Scale) -> list[str]:
    """Parts of the names of the graphs that are looked at."""
    return ["generate-1-", f"generate-{scale.rows}-", f"context-1x{scale.prompt}-"]


def make(folder: Path, target: str | None, kernels: KernelsChoice, measured: Path | None = None) -> None:
    """Compile for a card.

    Args:
        folder: the directory to make.
        target: the card, which need not be here; None for the one that is, which measures its kernels.
        kernels: as of `xlaserve compile`.
        measured: artifacts that were compiled on the card, whose kernels are taken.
    """
    from xlaserve.buckets.directories import tuning
    from xlaserve.buckets.targets import AbsentDevice, target_platform
    from xlaserve.engine.build import compile_graphs, make_plan, open_stores
    from xlaserve.engine.config import EngineConfig
    from xlaserve.errors import ConfigError

    config = EngineConfig(**CARD.step_engine, kernels=kernels, compile_threads=1)
    plan = make_plan(config, None if target is None else target_platform("cuda", target))
    if isinstance(device := plan.platform.devices()[0], AbsentDevice):  # StableHLO is all there would be
        raise ConfigError(f"no executables can be made here: {device.reason}")
    wanted = [bucket for bucket in plan.ladder.buckets if any(name in bucket.name for name in names(CARD))]
    context = tuple(bucket for bucket in plan.ladder.context if bucket in wanted)
    generate = tuple(bucket for bucket in plan.ladder.generate if bucket in wanted)
    plan = replace(plan, ladder=replace(plan.ladder, context=context, generate=generate))
    print(plan.describe())
    stores = open_stores(plan, config, print, folder)
    if measured is not None:
        stores.cache.save_tuning(tuning(measured))
    compile_graphs(plan, stores, config, print)


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


def carried(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """Compile on the card, then for it as if it were not here, with what was measured; and time that. Both in processes of their own, which
    leave this one the card.
    """
    if scale.device != "cuda":
        return {"error": "needs a card: not run"}
    from benchmarks.gpu.parts import card

    target = "h200" if "H200" in card() else "h100"
    with tempfile.TemporaryDirectory() as folder:
        here, again = Path(folder) / "here", Path(folder) / "again"
        seconds = {
            "compiled here": _made(here, ["--here"], {}, say),
            "compiled again": _made(again, ["--target", target, "--tuning", str(here)], {"JAX_PLATFORMS": "cpu"}, say),
        }
        results = (here / TUNING).read_bytes()
        found = measure(scale, str(again), say)
    return {**found, "made_s": seconds, "kernels_measured": len(decode_results(results)), "results": base64.b64encode(results).decode()}


def _made(folder: Path, options: list[str], variables: dict[str, str], say: Callable[[str], None]) -> float:
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.artifact", str(folder), *options]
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    say(done.stdout)
    return time.monotonic() - began


def main() -> int:
    """Make the artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the directory to make")
    parser.add_argument("--target", default="h100", help="the card (default: h100)")
    parser.add_argument("--here", action="store_true", help="the card is here: its kernels are measured")
    parser.add_argument("--kernels", choices=["native", "none"], default="native", help="as of `xlaserve compile` (default: native)")
    parser.add_argument("--tuning", type=Path, metavar="MEASURED", help="artifacts that were compiled on the card")
    args = parser.parse_args()
    make(args.folder, None if args.here else args.target, args.kernels, args.tuning)
    return 0


if __name__ == "__main__":
    sys.exit(main())
