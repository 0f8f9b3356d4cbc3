"""The GPU part of `benchmarks/RESULTS.md`, from what the parts have found: figures as they were measured, and what was not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.reference import ALIKE, TOLERANCE
from benchmarks.gpu.variants import VARIANTS
from benchmarks.results import RESULTS, replace_section, write_raw

DECODE_ONE, DECODE_MANY, PROMPT, IDLE = 0.85, 0.75, 0.60, 0.03
"""Goals: shares of the copy bandwidth at one sequence and at 64, of the rate of operations with a prompt, and of time without a kernel."""


def write(out: Path) -> int:
    """Write the section `gpu`, and the results beside it."""
    file = out / "gpu.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    text = section(found)
    replace_section(RESULTS, "gpu", text)
    write_raw("gpu", found)
    print(text)
    return 0


def section(found: dict[str, Any]) -> str:
    """Markdown."""
    facts, ceilings = found.get("facts", {}), found.get("ceilings", {})
    versions = ", ".join(f"{name} {value}" for name, value in facts.get("versions", {}).items() if value)
    where = ", ".join(filter(None, (facts.get("nvidia_smi") or facts.get("device", "unknown device"), versions)))
    text = [
        "## NVIDIA GPU",
        "",
        f"`python -m benchmarks.gpu OUT`, {where}." if found else "Nothing has been measured: no card was there.",
        "",
    ]
    if "copy_bytes_per_s" in ceilings:
        copy, product = ceilings["copy_bytes_per_s"] / 1e9, ceilings["gemm_flops_per_s"] / 1e12
        ways = f"a copy moves {copy:,.0f} GB/s, read and written; a product of random bfloat16 matrices does {product:,.0f} TFLOP/s"
        text += [f"Measured on it: {ways}.", ""]
    text += [*_graphs(found, ceilings), *_thunks(found), *_attention(found), *_serving(found), *_reference(found), *_exact(found)]
    failed = {name: found.get(name, {}).get("error") for name in PARTS if "error" in found.get(name, {"error": None})}
    missing = [f"{name} ({_cell(why, 120)})" if why else name for name, why in failed.items()]
    text += ["", f"Not run: {', '.join(missing) or 'nothing'}."]
    return "\n".join(text)


def _cell(text: object, most: int = 80) -> str:
    """What fits into a cell of a table, on one line."""
    return " ".join(str(text).split()).replace("|", "/")[:most]


def _graphs(found: dict[str, Any], ceilings: dict[str, Any]) -> list[str]:
    """Shares are of what the part `ceilings` has measured, and where that has failed, of what each part has."""
    head = [
        "### Graphs",
        "",
        "| form | graph | context | MB | GFLOP | ms | of the copy bandwidth | of the rate of operations | goal | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    text: list[str] = []
    skipped: list[str] = []
    for name in ("artifact", "tuning", *(f"graphs-{variant}" for variant in VARIANTS)):
        metrics = found.get(name, {}).get("metrics", {})
        skipped += [f"{name.removeprefix('graphs-')}: {why}" for why in found.get(name, {}).get("skipped", [])]
        for line in metrics.get("graphs", []):
            seconds = line["ms"]["median"] / 1e3
            bandwidth = line["bytes"] / seconds / (ceilings.get("copy_bytes_per_s") or metrics["bandwidth"]["best"])
            rate = line["flops"] / seconds / (ceilings.get("gemm_flops_per_s") or metrics["gemm"]["best"])
            context = line["graph"].startswith("context")
            goal = PROMPT if context else DECODE_ONE if line["rows"] == 1 else DECODE_MANY
            met = "met" if (rate if context else bandwidth) >= goal else "not met"
            form, size = name.removeprefix("graphs-"), f"{line['bytes'] / 1e6:,.0f} | {line['flops'] / 1e9:,.0f}"
            share = f"{bandwidth:.0%} | {rate:.0%} | {goal:.0%} | {met}"
            text.append(f"| {form} | {line['graph']} | {line['context']} | {size} | {1e3 * seconds:.3f} | {share} |")
    if not text:
        return []
    if "copy_bytes_per_s" not in ceilings:
        text += [
            "",
            "The ceilings were not measured by themselves: shares are of the fastest that each form's own part has read and multiplied.",
        ]
    if skipped:
        text += ["", f"Not timed: {'; '.join(skipped)}."]
    return [*head, *text, ""]


def _thunks(found: dict[str, Any]) -> list[str]:
    text = ["### Command buffers", "", "| form | graph | thunks at the top |", "|---|---|---|"]
    for variant in VARIANTS:
        for graph, kinds in found.get(f"graphs-{variant}", {}).get("thunks", {}).items():
            text.append(f"| {variant} | {graph} | {', '.join(f'{count} {kind}' for kind, count in kinds['top'].items())} |")
    return [*text, ""] if len(text) > 4 else []


def _attention(found: dict[str, Any]) -> list[str]:
    lines = found.get("attention", {}).get("lines", [])
    if not lines:
        return []
    text = [
        "### Attention of one layer",
        "",
        "| what | form | context | ms | GB/s of KV in use | TFLOP/s | largest error |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        if "ms" not in line:
            text.append(f"| {line['what']} | {line['kind']} | {line['context']} | | | | {_cell(line['error'])} |")
            continue
        text.append(
            f"| {line['what']} | {line['kind']} | {line['context']} | {line['ms']:.4f} | {line['kv_bytes_per_s'] / 1e9:,.0f} "
            f"| {line['flops_per_s'] / 1e12:,.1f} | {'' if line['error'] is None else format(line['error'], '.1e')} |"
        )
    return [*text, ""]


def _serving(found: dict[str, Any]) -> list[str]:
    text: list[str] = []
    for name in ("serve-mosaic", "serve-tiled", "transformers", "vllm"):
        for line in found.get(name, {}).get("lines", []):
            if "itl_ms" in line:
                text.append(
                    f"| {name} | {line['concurrency']} | {line['output_tokens_per_s']:,.0f} | {line['ttft_ms']['median']:,.0f} "
                    f"| {line['itl_ms']['median']:.2f} | {line['itl_ms']['p99']:.2f} |"
                )
            else:
                text.append(
                    f"| {name} | {line['concurrency']} | {line.get('output_tokens_per_s', 0):,.0f} | | | {_cell(line.get('error', ''))} |"
                )
    if not text:
        return []
    head = ["### Serving", "", "All requests of a row are there at once.", ""]
    head += ["| engine | requests | output tokens/s | TTFT, median, ms | ITL, median, ms | ITL, p99, ms |", "|---|---|---|---|---|---|"]
    for name in ("serve-mosaic", "serve-tiled"):
        idle = found.get(name, {}).get("idle", {})
        if "idle_share" in idle:
            met = "met" if idle["idle_share"] <= IDLE else "not met"
            text += ["", f"{name}: no kernel runs in {idle['idle_share']:.1%} of the time of generation (goal {IDLE:.0%}: {met})."]
        elif idle:
            text += ["", f"{name}: device idle not measured: {_cell(idle.get('error'), 200)}."]
    return [*head, *text, ""]


def _reference(found: dict[str, Any]) -> list[str]:
    text: list[str] = []
    for name in (name for name in PARTS if name.startswith("reference-")):
        for line in found.get(name, {}).get("lines", []):
            ours, theirs = line["ours"], line.get("transformers")
            beside = f"{theirs['mean']:.1e} | {theirs['largest']:.1e}" if theirs else "|"
            verdict = "within" if line["within"] else "NOT WITHIN"
            figures = f"{ours['count']:,} | {ours['mean']:.1e} | {ours['largest']:.1e} | {ours['gap']:.1e} | {beside}"
            text.append(f"| {name.removeprefix('reference-')} | {line['family']} | {figures} | {verdict} |")
    if not text:
        return []
    head = [
        "### Log probabilities beside transformers' in float32",
        "",
        f"In float32 none differs by more than {TOLERANCE}. In bfloat16 the engine is at most {ALIKE} times as far away as transformers in",
        "bfloat16 (root of the mean square; twice that for the largest difference, and for how much likelier another token is than a",
        "generated one).",
        "",
        "| form | family | log probabilities | mean | largest | gap of a generated token | transformers' mean | largest | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *text, ""]


def _exact(found: dict[str, Any]) -> list[str]:
    lines = found.get("exact", {}).get("lines", [])
    if not lines:
        return []
    text = [
        f"### Equality, {found['exact']['model']}",
        "",
        "| alone | in a crowd | tokens | largest difference of a log probability | gaps where tokens differ | tolerance | |",
    ]
    text.append("|---|---|---|---|---|---|---|")
    for line in lines:
        verdict = "within" if line["within"] else "NOT WITHIN"
        gaps = ", ".join(f"{gap:.2e}" for gap in line["gaps_where_tokens_differ"])
        compared = f"{line['tokens_compared']} | {line['largest_difference']:.2e} | {gaps} | {line['tolerance']}"
        text.append(f"| {line['alone']} | {line['in a crowd']} | {compared} | {verdict} |")
    return [*text, ""]
