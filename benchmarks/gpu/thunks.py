"""What XLA has made of a graph for a card: the sequence of its thunks, as XLA's own dump has it. Command buffers are CUDA graphs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

SUFFIX = "thunk_sequence_after_thunk_passes.txt"
"""What the names of XLA's lists of thunks end in."""


def thunks(dump: Path) -> dict[str, Any]:
    """By graph: how many thunks of each kind there are at the top, and within all.

    At best there is one command buffer at the top and nothing beside it.
    """
    found: dict[str, Any] = {}
    for file in sorted(dump.glob(f"*{SUFFIX}")):
        if (name := graph_of(file)) is None or not name.startswith(("generate", "context")):
            continue
        text = file.read_text(errors="replace")
        found[name] = {
            "top": Counter(re.findall(r"^\d+: k(\w+)", text, re.MULTILINE)),
            "all": Counter(re.findall(r"^ *\d+: k(\w+)", text, re.MULTILINE)),
        }
    return found


def graph_of(file: Path) -> str | None:
    """The graph that a file of XLA's dump is of; None where it is of something else."""
    found = re.search(r"jit_([a-z]\w*)\.", file.name)
    return None if found is None else found[1].replace("_", "-")
