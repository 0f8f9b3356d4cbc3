"""The table of rules in the documents is the one that the code holds."""

from __future__ import annotations

from pathlib import Path

from xlaserve.buckets.lint.rules import RULES
from xlaserve.buckets.lint.table import rules_table


def test_the_document_has_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "platforms.md").read_text()
    inside = text.split("<!-- rules -->")[1].split("<!-- /rules -->")[0].strip()
    assert inside == rules_table(), "replace it by what `python -m xlaserve.buckets.lint.table` prints"


def test_the_table_is_well_formed() -> None:
    rows = rules_table().splitlines()
    assert len(rows) == 2 + len(RULES)
    assert {row.count("|") for row in rows} == {6}
