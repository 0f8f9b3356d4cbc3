"""What XLA has made of a graph for a card: the sequence of its thunks, as XLA's own dump has it. Command buffers are CUDA graphs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

_SUFFIX = "thunk_sequence_after_thunk_passes.txt"


def thunks(dump: Path) -> dict[str, Any]:
    """By graph: how many thunks of each kind there are at the top, and within all.

    At best there is one command buffer at the top and nothing beside it.
    """
    found: dict[str, Any] = {}
    for file in sorted(dump.glob(f"*{_SUFFIX}")):
        if (name := re.search(r"jit_((?:generate|context)_\w+)\.", file.name)) is None:
            continue
        text = file.read_text(errors="replace")
        found[name[1].replace("_", "-")] = {
            "top": Counter(re.findall(r"^\d+: k(\w+)", text, re.MULTILINE)),
            "all": Counter(re.findall(r"^ *\d+: k(\w+)", text, re.MULTILINE)),
        }
    return found
