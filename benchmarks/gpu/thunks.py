"""What XLA has made of a graph for a card: the sequence of its thunks, as XLA's own dump has it. Command buffers are CUDA graphs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

SUFFIX = "thunk_sequence_after_thunk_passes.txt"
"""What the names of XLA's lists of thunks end in."""

_THUNK = re.compile(r"^( *)\d+: k(\w+)(?:[^\]\n]*\] *(\S*))?", re.MULTILINE)


def thunks(dump: Path) -> dict[str, Any]:
    """By graph: how many thunks of each kind there are at the top, and within all.

    At best there is one command buffer at the top and nothing beside it.
    """
    found: dict[str, Any] = {}
    for file in sorted(dump.glob(f"*{SUFFIX}")):
        if is_step(name := graph_of(file)):
            text = file.read_text(errors="replace")
            found[str(name)] = {"top": steps(text)[0], "all": Counter(kind for _, kind, _ in _THUNK.findall(text))}
    return found


def steps(text: str) -> tuple[Counter[str], list[tuple[str, str]]]:
    """The kinds at the top of a list of thunks, and what a step runs: kinds and names one level below, in command buffers, and the rest of
    the top. What is in a conditional or a loop is not counted.
    """
    top: Counter[str] = Counter()
    run: list[tuple[str, str]] = []
    within = ""
    for indent, kind, kernel in _THUNK.findall(text):
        if not indent:
            top[kind] += 1
            within = kind
            run += [] if kind == "CommandBuffer" else [(kind, kernel)]
        elif len(indent) == 4 and within == "CommandBuffer":
            run.append((kind, kernel))
    return top, run


def graph_of(file: Path) -> str | None:
    """The graph that a file of XLA's dump is of; None where it is of something else."""
    found = re.search(r"jit_([a-z]\w*)\.", file.name)
    return None if found is None else found[1].replace("_", "-")


def is_step(graph: str | None) -> bool:
    """Whether a graph encodes context or generates tokens."""
    return graph is not None and graph.startswith(("generate-", "context-"))
