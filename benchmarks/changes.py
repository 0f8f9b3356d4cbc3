"""What changes of the code have brought: commits beside each other, by turns, in trees of their own.

    python -m benchmarks.changes [NAME ...] [--repeats 3] [--trees DIR] [--write]

For every change in `CHANGES` the commit before it and the one with it are checked out and their kernels built; then `xlaserve bench` of
each measures the graphs that the change is about, or the throughput, by turns; medians over all. `--write` puts the table into
benchmarks/RESULTS.md, the lines of changes that are not named being kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import RAW, RESULTS, replace_section, write_raw
from benchmarks.rooflines import FORMS

ROOT = Path(__file__).parent.parent
THROUGHPUT = [
    "--num-prompts",
    "32",
    "--random-input-len",
    "144",
    "--random-output-len",
    "64",
    "--random-range-ratio",
    "0.77",
    "--num-iters",
    "2",
]
"""32 requests at once, as beside peers: 32 to 256 tokens in."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change and what shows it.

    Args:
        name: on the command line.
        what: it is, for the table.
        before, after: commits.
        forms: of the weights, as `benchmarks.rooflines` names them.
        graphs: beginnings of the names of graphs to time; empty for the throughput of 32 requests.
        contexts: tokens of each sequence to time graphs with.
    """

    name: str
    what: str
    before: str
    after: str
    forms: tuple[str, ...]
    graphs: tuple[str, ...] = ()
    contexts: str = "128"


CHANGES = (
    Change("weight-pages", "weights in huge pages", "ecfb0c9", "8a1285d", ("float32",), ("generate-1-",)),
    Change(
        "panels",
        "weights in panels of 32 outputs",
        "8a1285d",
        "c78b0f7",
        ("float32", "int8"),
        ("generate-1-", "generate-8-", "generate-32-", "context-1x512"),
        "512",
    ),
    Change("greedy", "greedy batches go past the sampler", "8a1285d", "bba6c58", ("float32",), ("generate-1-", "generate-32-")),
    Change("kv-pages", "the KV cache in huge pages", "fd0819d", "598929e", ("float32",), ("generate-32-",), "512"),
    Change("places", "sequences share places of a context graph", "4e4e0c8", "16eb954", ("float32",)),
    Change("last-layer", "the last layer for wanted tokens only", "38149e6", "002e49e", ("float32",), ("context-1x512",), "512"),
    Change(
        "key-layout",
        "attention: keys side by side, the next task's asked for",
        "38149e6",
        "2838160",
        ("float32",),
        ("generate-1-", "generate-32-", "context-1x512"),
        "512",
    ),
    Change(
        "many-rows",
        "linear layers: tiles finished at once, the right panel read ahead",
        "38149e6",
        "5859b40",
        ("float32",),
        ("generate-8-", "generate-32-", "context-1x512"),
        "512",
    ),
    Change("packs", "parameters and KV of all layers in a few arrays", "f600d4f", "9893bc6", ("bfloat16", "int8"), ("generate-1-",)),
    Change("chain", "layers in one call; argmax by a kernel", "9893bc6", "8558047", ("bfloat16", "int8"), ("generate-1-", "generate-32-")),
    Change("parts", "as many parts of a layer for each thread", "ce678d4", "1e31476", ("float32", "bfloat16", "int8"), ("generate-1-",)),
    Change(
        "pairs",
        "tiles of two panels, some steps at a time; activations in vectors",
        "32bc334",
        "4d5f404",
        ("float32",),
        ("generate-1-", "generate-32-", "context-1x512"),
    ),
    Change(
        "widened",
        "x widened once; VNNI without AVX512_BF16",
        "4d5f404",
        "8f8b1fa",
        ("bfloat16", "int8"),
        ("generate-1-", "generate-32-", "context-1x512"),
    ),
    Change(
        "ahead",
        "with few rows, weights asked for before they are needed",
        "a3c2f73",
        "dd57f98",
        ("float32", "bfloat16", "int8"),
        ("generate-1-", "generate-8-"),
    ),
)


def tree(commit: str, folder: Path) -> Path:
    """A checkout of a commit, with its kernels built."""
    place = folder / commit
    if not place.exists():
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(place), commit], check=True)
    subprocess.run([sys.executable, "-m", "xlaserve.kernels.build"], cwd=place, check=True, stdout=subprocess.DEVNULL)
    return place


def measure(place: Path, change: Change, form: str, iterations: int) -> dict[str, float]:
    """One run in a tree: milliseconds by graph and context, or generated tokens a second."""
    flags = [*FORMS[form], "--max-model-len", "2048", "--context-buckets", "128,512"]
    if change.graphs:
        what = ["kernels", *flags, "--contexts", change.contexts, "--graphs", *change.graphs, "--num-iters", str(iterations)]
        what += ["--bandwidth-bytes", "64M", "--gemm-size", "256"]  # ceilings, which nobody reads here
    else:
        what = ["throughput", *flags, *THROUGHPUT]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "xlaserve", "bench", *what, "--output-json", str(file)]
        subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
        metrics: dict[str, Any] = json.loads(file.read_text())["metrics"]
    if change.graphs:
        return {f"{line['graph']} at {line['context']}, ms": line["ms"]["median"] for line in metrics["graphs"]}
    return {"32 requests, tokens/s": metrics["output_throughput"]["median"]}


def section(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: of each change the medians before and after it, and how much faster it made what was measured.

    Args:
        runs: of each change by name its runs: commit, form, and what `measure` gave.
    """
    text = [
        "## What changes brought",
        "`python -m benchmarks.changes --write`: a commit and the one before it, by turns in one session; medians. Each line compares",
        "only its own two commits, so figures of different changes do not multiply. Where the turns, of which the last column has the",
        "least and the most, are on both sides of 1, a line says nothing.",
        "",
        "| change | commit | weights | measured | before | after | times as fast | of turns |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for change in CHANGES:
        found = runs.get(change.name, [])
        for form in dict.fromkeys(run["form"] for run in found):
            sides = {c: [r["values"] for r in found if r["form"] == form and r["commit"] == c] for c in (change.before, change.after)}
            for key in dict.fromkeys(k for values in sides[change.after] for k in values):
                before, after = (median(values[key] for values in sides[c] if key in values) for c in (change.before, change.after))
                turns = [_times(a[key], b[key], key) for a, b in zip(*sides.values(), strict=True) if key in a and key in b]
                ratio = f"{_times(before, after, key):.2f} | {min(turns):.2f} to {max(turns):.2f}"
                text.append(f"| {change.what} | {change.after} | {form} | {key} | {before:,.2f} | {after:,.2f} | {ratio} |")
    return "\n".join(text)


def _times(before: float, after: float, key: str) -> float:
    """How much faster it is after a change: of milliseconds, or of something a second."""
    return before / after if key.endswith("ms") else after / before


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [change.name for change in CHANGES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"changes to measure, of {', '.join(names)} (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--num-iters", type=int, default=5, help="groups of runs of each graph in a turn (default: 5)")
    parser.add_argument("--trees", type=Path, help="where commits are checked out, to be used again (default: nowhere)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.names) - set(names)):
        parser.error(f"{', '.join(unknown)}: no such change; there are {', '.join(names)}")
    raw = RAW / "changes.json"
    runs: dict[str, list[dict[str, Any]]] = json.loads(raw.read_text()) if raw.exists() else {}
    with tempfile.TemporaryDirectory() as nowhere:
        trees = args.trees or Path(nowhere)
        try:
            for change in CHANGES:
                if not args.names or change.name in args.names:
                    runs[change.name] = _turns(change, trees, args.repeats, args.num_iters)
        finally:
            if args.trees is None:
                for place in trees.iterdir():
                    subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(place)], check=False)
    print(section(runs))
    if args.write:
        replace_section(RESULTS, "changes", section(runs))
        write_raw("changes", runs)
    return 0


def _turns(change: Change, trees: Path, repeats: int, iterations: int) -> list[dict[str, Any]]:
    places = {commit: tree(commit, trees) for commit in (change.before, change.after)}
    found: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for form in change.forms:
            # Who begins changes, so that neither gets the machine as the other left it.
            for commit in (change.before, change.after)[:: 1 if repeat % 2 == 0 else -1]:
                print(f"{change.name}, turn {repeat + 1}: {form}, {commit}", file=sys.stderr, flush=True)
                found.append({"commit": commit, "form": form, "values": measure(places[commit], change, form, iterations)})
    return found


if __name__ == "__main__":
    sys.exit(main())
