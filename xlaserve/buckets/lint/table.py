"""The rules as a Markdown table, for docs/platforms.md; `python -m xlaserve.buckets.lint.table` prints it."""

from __future__ import annotations

from xlaserve.buckets.lint.rules import RULES


def rules_table() -> str:
    """One row per rule."""
    rows = ["| rule | what must hold | finding | source | what stays open |", "|---|---|---|---|---|"]
    rows += [f"| {rule.id} | {rule.must} | {rule.severity} | {rule.source} | {rule.limit} |".replace("|  |", "| |") for rule in RULES]
    return "\n".join(rows)


if __name__ == "__main__":
    print(rules_table())
