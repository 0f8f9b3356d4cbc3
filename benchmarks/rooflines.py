"""Graphs of the demo model on this CPU: each against its roofline, and with the native kernels beside XLA alone.

    python -m benchmarks.rooflines [MODEL] [--forms float32 bfloat16 int8] [--repeats 3] [--single-repeats 7] [--write]

Every form is measured by `xlaserve bench kernels` in a process of its own, with the kernels and without them by turns; medians over all.
The graph of one sequence, which has a goal, is measured by itself besides, more often.
`--write` puts the tables into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import RESULTS, replace_section, write_raw

FORMS: dict[str, list[str]] = {
    "float32": ["--dtype", "float32"],
    "bfloat16": ["--dtype", "bfloat16"],
    "int8": ["--dtype", "float32", "--quantization", "int8"],
}
GRAPHS = ["generate-1-", "generate-8-", "generate-32-", "context-1x128", "context-1x512"]
CONTEXTS = "128,512,2000"
GOAL = 0.8
"""Share of the read bandwidth that the weights of a step of one sequence are to be read with."""


def measure(model: list[str], form: str, kernels: str, iterations: int, *, single: bool = False) -> dict[str, Any]:
    """One run of `xlaserve bench kernels`, as its JSON has it; `single` is of one sequence with 128 tokens alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "xlaserve", "bench", "kernels", *model, *FORMS[form], "--kernels", kernels]
        command += ["--max-model-len", "2048", "--contexts", "128" if single else CONTEXTS, "--graphs", *(GRAPHS[:1] if single else GRAPHS)]
        command += ["--gemm-size", "256"] if single else []  # nobody reads that ceiling
        command += ["--num-iters", str(iterations), "--output-json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def key(line: dict[str, Any]) -> tuple[str, int]:
    """Graph and context of a line."""
    return line["graph"], line["context"]


def lines_of(results: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Lines of several runs, by graph and context."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in results:
        for line in result["metrics"]["graphs"]:
            found.setdefault(key(line), []).append(line)
    return found


def middle(lines: Sequence[dict[str, Any]]) -> float:
    """Milliseconds: the median over runs of each run's median."""
    return median(line["ms"]["median"] for line in lines)


def middle_of(lines: Sequence[dict[str, Any]], name: str) -> float:
    """The median over runs of each run's median."""
    return median(line[name]["median"] for line in lines)


def roofline_section(found: dict[str, dict[str, list[dict[str, Any]]]], single: dict[str, list[dict[str, Any]]], command: str) -> str:
    """Markdown: each form's graphs against their rooflines, and the goal for a single sequence, which `single` is about."""
    first, turns = next(iter(found.values()))["native"][0], len(next(iter(single.values())))
    text = [
        "## Graphs against their rooflines",
        f"`{command}`, {_conditions(first)}. Bytes and operations are what a run must at least move and do; ceilings were",
        "measured in the same process (`docs/benchmarks.md`). GB/s and GFLOP/s are shares of the best run of the best way, which on",
        "a shared machine is more than it gives for long. Milliseconds are medians.",
        "",
        f"### One sequence: weights are to be read with {GOAL:.0%} of the bandwidth",
        "",
        "The bandwidth is that of the way that reads fastest, measured just before and after each group of runs; a share is a group's,",
        f"and what stands here the median over groups and {turns} turns, then the least and the most of the turns' medians.",
        "",
        "| weights | MB | ms at 128 tokens | GB/s of weights | read bandwidth meanwhile, GB/s | share | of turns | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for form, results in single.items():
        lines = [line for result in results for line in result["metrics"]["graphs"]]
        seconds, weights = middle(lines) / 1e3, lines[0]["weight_bytes"]
        rate, share = (middle_of(lines, name) for name in ("read_bytes_per_s", "weight_share"))
        shares = [line["weight_share"]["median"] for line in lines]
        text.append(
            f"| {form} | {weights / 1e6:,.0f} | {seconds * 1e3:.2f} | {weights / seconds / 1e9:.1f} | {rate / 1e9:.1f} | {share:.0%} "
            f"| {min(shares):.0%} to {max(shares):.0%} | {'met' if share >= GOAL else 'not met'} |"
        )
    for form, ways in found.items():
        text += [
            "",
            f"### {form}",
            "",
            "| graph | tokens | context | MB | GFLOP | ms | GB/s | of ceiling | GFLOP/s | of ceiling | binds | of roofline |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for lines in lines_of(ways["native"]).values():
            best = sorted(lines, key=lambda line: line["ms"]["median"])[len(lines) // 2]
            text.append(
                f"| {best['graph']} | {best['tokens']} | {best['context']} | {best['bytes'] / 1e6:,.1f} | {best['flops'] / 1e9:,.2f} "
                f"| {best['ms']['median']:,.2f} | {best['bytes_per_s'] / 1e9:.1f} | {best['bandwidth_share']:.0%} "
                f"| {best['flops_per_s'] / 1e9:.1f} | {best['flop_share']:.0%} | {best['binds']} | {best['roofline_share']:.0%} |"
            )
    return "\n".join(text)


def before_section(found: dict[str, dict[str, list[dict[str, Any]]]], command: str) -> str:
    """Markdown: milliseconds of each graph without the kernels and with them."""
    first = next(iter(found.values()))["native"][0]
    text = [
        "## Before and after the native kernels",
        f"`{command}`, {_conditions(first)}. Medians in milliseconds, by turns: `none` is XLA alone (`--kernels none`),",
        "`native` the same graphs on the kernels.",
        "",
        "| weights | graph | context | none | native | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for form, ways in found.items():
        if not ways["none"]:
            continue
        after = lines_of(ways["native"])
        for at, lines in lines_of(ways["none"]).items():
            if at in after:
                plain, native = middle(lines), middle(after[at])
                text.append(f"| {form} | {at[0]} | {at[1]} | {plain:,.2f} | {native:,.2f} | {plain / native:.1f} |")
    return "\n".join(text)


def _conditions(result: dict[str, Any]) -> str:
    versions, machine = result["versions"], result["machine"]
    kernels = next((line.split(None, 1)[1] for line in result["subject"]["plan"] if line.startswith("kernels")), "")
    return (
        f"{result['subject']['model']}, xlaserve {versions['xlaserve']}, jax {versions['jax']}, kernels {kernels}, "
        f"{machine['cpu']}, {machine['usable_cores']} cores, {result['date'][:10]}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="as for `serve` (default: the demo model)")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), help="of the weights (default: all)")
    parser.add_argument("--plain", nargs="*", choices=list(FORMS), default=["float32", "int8"], help="forms measured without kernels too")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--single-repeats", type=int, default=7, help="turns of one sequence by itself (default: 7)")
    parser.add_argument("--num-iters", type=int, default=5, help="groups of runs of each graph in a turn (default: 5)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args(arguments)
    model = [args.model] if args.model else []
    found: dict[str, dict[str, list[dict[str, Any]]]] = {form: {"native": [], "none": []} for form in args.forms}
    for repeat in range(args.repeats):
        for form in args.forms:
            for kernels in ("native", "none") if form in args.plain and repeat == 0 else ("native",):
                print(f"turn {repeat + 1}: {form}, kernels {kernels}", file=sys.stderr, flush=True)
                found[form][kernels].append(measure(model, form, kernels, args.num_iters))
    single: dict[str, list[dict[str, Any]]] = {form: [] for form in args.forms}
    for repeat in range(args.single_repeats):
        for form in args.forms:
            print(f"turn {repeat + 1} of one sequence: {form}", file=sys.stderr, flush=True)
            single[form].append(measure(model, form, "native", args.num_iters, single=True))
    command = " ".join(["python -m benchmarks.rooflines", *(arguments if arguments is not None else sys.argv[1:])])
    sections = {"rooflines": roofline_section(found, single, command), "profiles": before_section(found, command)}
    for name, text in sections.items():
        print(text, end="\n\n")
        if args.write:
            replace_section(RESULTS, name, text)
    if args.write:
        measured = {form: {**ways, "single": single[form]} for form, ways in found.items()}
        write_raw("rooflines", {form: {way: [r["metrics"] for r in runs] for way, runs in ways.items()} for form, ways in measured.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
