"""Results to Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers.comparison import Record
from benchmarks.peers.contestants import GROUPS, XLASERVE
from benchmarks.peers.goals import GOALS, outcome
from benchmarks.peers.speedup import brief, paired_speedup, spread
from benchmarks.peers.workload import MEASURES
from xlaserve.bench.spread import Spread

_QUIET = 0.1
"""Of a core: what may be busy with other things, in the median of all runs."""
_METHOD = """Every engine runs in a process of its own and is driven through its own Python API: no HTTP, token ids in and out, greedy,
ends of sequence ignored, caches of prompts off. The processes take turns: in each turn every engine does the same work on the same
prompts, one right after the other, and whoever has no turn is stopped. Who begins changes with the turn. Each runs unmeasured at every
size before. Values are medians [least, most]; a ratio is made from runs of the same turn, and 1.5 says that xlaserve is 1.5 times as
fast.

- decode: one request, 128 tokens in, 128 out: 127 / (time - time to first token).
- TTFT: time until the first token of one request of so many tokens is in the caller's hands.
- 8 and 32 requests: handed over at once, 32 to 256 tokens in, 64 out: generated tokens / time of all, prompts included. llama.cpp gets one
  batch over all sequences in each step, the way of `llama-batched-bench`, since its Python API computes one request at a time and its
  server would add HTTP; transformers gets one padded batch."""


def report(results: Mapping[str, Any]) -> str:
    """The section of a comparison.

    Args:
        results: what `__main__` keeps as raw results.
    """
    records = {name: Record(**fields) for name, fields in results["records"].items()}
    machine = results["machine"]
    about = (
        f"SmolLM2-135M, threads: {len(results['cpus'])}, {results['when']}, commit {results['commit']}. {machine['processor']} "
        f"({', '.join(machine['features'])}), {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}."
    )
    parts = [
        "## CPU: xlaserve beside its peers",
        "**A quick run, to see that everything works: its figures say nothing.**" if results["quick"] else "",
        about,
        _METHOD,
        "Reproduce:\n\n```\n" + "\n".join(results["commands"]) + "\n```",
        "### Goals",
        _goals(records),
    ]
    for group, title in GROUPS.items():
        of_group = {name: record for name, record in records.items() if record.group == group}
        if of_group:
            parts += [f"### {title}", _values(of_group), *_speedups(of_group)]
    parts += ["### What ran", _engines(records), _agreement(records), _quietness(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _goals(records: Mapping[str, Record]) -> str:
    titles = {measure.name: measure.title for measure in MEASURES}
    rows: list[list[str]] = []
    for goal in GOALS:
        came_out = outcome(goal, records)
        beside = came_out.rival if len(goal.rivals) == 1 else f"{came_out.rival} (the faster of {' and '.join(goal.rivals)})"
        if came_out.speedup is None:
            beside = " or ".join(goal.rivals)
        speedup = "" if came_out.speedup is None else brief(came_out.speedup)
        rows.append([titles[goal.measure], goal.ours, beside, f"{goal.at_least}", speedup, came_out.verdict])
    return _table(["measure", "of", "beside", "goal", "ratio", ""], rows)


def _values(records: Mapping[str, Record]) -> str:
    head = ["engine", *(f"{measure.title}, {measure.unit}" for measure in MEASURES)]
    return _table(head, [[name, *(_cell(spread(record.values.get(m.name, []))) for m in MEASURES)] for name, record in records.items()])


def _speedups(records: Mapping[str, Record]) -> list[str]:
    """How many times as fast we are as each of the others."""
    ours = next((record for record in records.values() if record.kind == XLASERVE.name), None)
    others = {name: record for name, record in records.items() if record is not ours}
    if ours is None or not others:
        return []
    rows = [
        [name, *(_cell(paired_speedup(m, ours.values.get(m.name, []), record.values.get(m.name, []))) for m in MEASURES)]
        for name, record in others.items()
    ]
    return ["xlaserve's speed over theirs:", _table(["beside", *(measure.title for measure in MEASURES)], rows)]


def _cell(found: Spread | None) -> str:
    return "-" if found is None else brief(found)


def _engines(records: Mapping[str, Record]) -> str:
    """Versions once for each kind of engine, settings for each contestant."""
    lines: list[str] = []
    for kind in dict.fromkeys(record.kind for record in records.values()):
        loaded = [record.about for record in records.values() if record.kind == kind and record.about is not None]
        versions = dict.fromkeys(f"{package} {version}" for about in loaded for package, version in about["versions"].items())
        notes = dict.fromkeys(note for about in loaded for note in about["notes"])
        lines.append(f"- {kind}: {', '.join(versions) or 'not there'}" + "".join(f"; {note}" for note in notes))
        for name, record in records.items():
            if record.kind == kind and record.about is not None:
                lines.append(f"  - {name}: `{record.about['settings']}`, ready in {record.load_seconds:.1f} s")
            if record.kind == kind and record.failed is not None:
                lines.append(f"  - {name}: **not run to the end**: {record.failed}")
    return "\n".join(lines)


def _agreement(records: Mapping[str, Record]) -> str:
    """How long greedy tokens stay the same: engines that compute the same model agree until two tokens are about equally likely."""
    reference = next((name for name, record in records.items() if record.tokens), None)
    if reference is None:
        return ""
    expected = records[reference].tokens
    equal = {name: _same(expected, record.tokens) for name, record in records.items() if record.tokens and name != reference}
    if not equal:
        return ""
    listed = ", ".join(f"{name} {count}" for name, count in equal.items())
    return f"Of {len(expected)} greedy tokens of one prompt, as many from the first on equal those of {reference}: {listed}."


def _same(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many come before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b), min(len(tokens), len(others)))


def _quietness(records: Mapping[str, Record]) -> str:
    """What else the machine did, and a warning where that was much."""
    found = spread([share for record in records.values() for column in record.elsewhere.values() for share in column])
    if found is None:
        return ""
    warning = " **Too much: measure again on a quiet machine.**" if found.median > _QUIET else ""
    return f"Processors kept busy by anything else during measured runs: {brief(found)} of a core.{warning}"
