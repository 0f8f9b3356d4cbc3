"""Graphs for a card that is not here, as XLA has compiled them: what a step runs, and what of it the host would have to wait for.

    python -m benchmarks.gpu.reading [--target h100] [--before COMMIT] [--write]

Needs JAX's CUDA plugin and no card, about two minutes a form. Nothing is measured: it is counted. `--before` reads the graphs of another
commit as well, from a checkout of its own; `--write` puts the table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.thunks import SUFFIX, graph_of, is_step, steps
from benchmarks.results import RESULTS, replace_section, write_raw

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS_OF_A_LAYER = 4
_STAGES = re.compile(r'"num_stages":(\d+)')
_TILE = re.compile(r'"output_tiles":\[\{"sizes":\[([^\]]*)\]')


@dataclass(frozen=True, slots=True)
class Form:
    """Graphs that are read.

    Args:
        name: for the table.
        tree: the checkout whose graphs they are.
        kernels: as `--kernels`; None for what the checkout's script does by itself.
    """

    name: str
    tree: Path
    kernels: str | None


def read(form: Form, target: str) -> list[dict[str, Any]]:
    """Compile the graphs that are measured on a card, and count what is in them."""
    with tempfile.TemporaryDirectory() as folder:
        made, dump = Path(folder) / "made", Path(folder) / "dump"
        command = [sys.executable, "-m", "benchmarks.gpu.artifact", str(made), "--target", target]
        command += [] if form.kernels is None else ["--kernels", form.kernels]
        environment = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={dump} --xla_dump_hlo_as_text", "PYTHONPATH": str(form.tree)}
        subprocess.run(command, cwd=form.tree, env=environment, check=True)
        graphs = json.loads((made / "manifest.json").read_bytes())["graphs"]
        files = [file for file in sorted(dump.glob(f"*{SUFFIX}")) if is_step(graph_of(file))]
        return [{"form": form.name, **described(file, graphs)} for file in files]


def described(thunks: Path, graphs: dict[str, Any]) -> dict[str, Any]:
    """What one graph is made of, and the bytes that it takes beside its arguments."""
    name = graph_of(thunks)
    assert name is not None
    top, run = steps(thunks.read_text())
    optimized = next(thunks.parent.glob(thunks.name.replace(SUFFIX, "*gpu_after_optimizations.txt")))
    products = [at for at, (kind, kernel) in enumerate(run) if _is_product(kind, kernel)]
    gaps = [later - at for at, later in zip(products, products[PRODUCTS_OF_A_LAYER:], strict=False)]
    [executable] = graphs[name]["executables"].values()
    memory = executable["memory"]
    return {
        "graph": name,
        "top": dict(top),
        "run": len(run),
        "of a layer": median(gaps),
        "products": _products(run, optimized.read_text()),
        "workspace": memory["temp"] + memory["output"] - memory["alias"],
    }


def _is_product(kind: str, kernel: str) -> bool:
    return "Matmul" in kind or kernel.startswith("gemm_fusion")


def _products(run: list[tuple[str, str]], optimized: str) -> str:
    """What computes the products: a library, or Triton with results of a program and stages as they are most often."""
    libraries = Counter(kind.removesuffix("Matmul") for kind, _ in run if "Matmul" in kind)
    tiles: Counter[tuple[str, str]] = Counter()
    for line in optimized.splitlines():
        if "__triton_nested_gemm_fusion" in line and (tile := _TILE.search(line)) and (stages := _STAGES.search(line)):
            tiles[tile[1].replace('"', "").replace(",", " x "), stages[1]] += 1
    found = [f"{count} {name}" for name, count in libraries.items()]
    if tiles:
        (sizes, stages), _ = tiles.most_common(1)[0]
        found.append(f"{sum(tiles.values())} Triton, most of {sizes}, stages {stages}")
    return ", ".join(found)


def table(lines: list[dict[str, Any]], command: str, facts: str) -> str:
    """Markdown."""
    text = [
        "## NVIDIA GPU: graphs read without a card",
        "",
        f"`{command}`, {facts}. Counted in what XLA has compiled; nothing was measured. Llama-3.1-8B in bfloat16.",
        "At the top of a graph there is at best one command buffer (a CUDA graph); a conditional or a loop beside it makes the host wait.",
        "",
        "| form | graph | at the top | kernels of a step | of a layer | products | workspace, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        top = ", ".join(f"{count} {kind}" for kind, count in line["top"].items())
        text.append(
            f"| {line['form']} | {line['graph']} | {top} | {line['run']} | {line['of a layer']:g} | {line['products']} "
            f"| {line['workspace'] / 1e6:,.0f} |"
        )
    return "\n".join(text)


def main() -> int:
    """Read the graphs of every form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="h100", help="the card (default: h100)")
    parser.add_argument("--before", metavar="COMMIT", help="another commit to read, in a checkout of its own")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.before:
            tree = Path(folder) / "tree"
            subprocess.run(["git", "worktree", "add", "--detach", str(tree), args.before], cwd=ROOT, check=True)
            try:
                lines += read(Form(f"kernels native, at {args.before}", tree, None), args.target)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    lines += read(Form("kernels native", ROOT, "native"), args.target)
    lines += read(Form("kernels none", ROOT, "none"), args.target)
    from xlaserve.bench.machine import versions

    before = f" --before {args.before}" if args.before else ""
    found = {"target": args.target, "versions": versions(), "lines": lines}
    facts = ", ".join(
        (f"target {args.target}", *(f"{name} {value}" for name, value in found["versions"].items() if "jax" in name and value))
    )
    text = table(lines, f"python -m benchmarks.gpu.reading --target {args.target}{before} --write", facts)
    print(text)
    if args.write:
        replace_section(RESULTS, "gpu-graphs", text)
        write_raw("gpu-graphs", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
