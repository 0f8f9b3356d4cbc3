"""`benchmarks/RESULTS.md` is written by scripts, each of which owns sections of it; raw results lie beside it as JSON.

A section is what stands between `<!-- section: NAME -->` and `<!-- end of section: NAME -->`. Writing one leaves all others as they are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
RAW = Path(__file__).parent / "results"

_HEAD = """# Results

Written by the scripts that each section names, not by hand. Raw results are in `benchmarks/results/`.
"""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_MARKER = re.compile(r"^<!-- (?:end of )?section: .* -->$", re.MULTILINE)


def replace_section(path: Path, name: str, text: str) -> None:
    """Write one section of a file, and keep the rest byte by byte.

    Args:
        path: the file, usually `RESULTS`; it is made where it is missing.
        name: of the section: lower case letters, digits and hyphens. A new one goes to the end.
        text: Markdown, with the section's heading.

    Raises:
        ValueError: the name or the text cannot be marked, or the file's markers of this section are not one pair.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name of a section must be lower case letters, digits and hyphens, got {name!r}")
    if _MARKER.search(text):
        raise ValueError(f"the text of section {name!r} holds a section's marker itself")
    begin, end = f"<!-- section: {name} -->", f"<!-- end of section: {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}\n"
    content = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    counts = content.count(begin), content.count(end)
    if counts == (0, 0):
        content = f"{content.rstrip()}\n\n{section}"
    elif counts == (1, 1) and content.index(begin) < content.index(end):
        before, rest = content.split(begin)
        content = before + section + rest.split(f"{end}\n" if f"{end}\n" in rest else end)[1]
    else:
        raise ValueError(f"{path} must hold {begin} and {end} once each, in this order")
    path.write_text(content, encoding="utf-8")


def write_raw(name: str, data: object) -> Path:
    """Keep raw results.

    Args:
        name: of the file, without its suffix.
        data: what JSON can hold.

    Returns:
        The file.
    """
    RAW.mkdir(exist_ok=True)
    path = RAW / f"{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path
