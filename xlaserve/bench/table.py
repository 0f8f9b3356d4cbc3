"""Tables for a person: columns as wide as what stands in them, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of a table.

    Args:
        head: names of the columns.
        rows: as many cells each.
        left: columns, counted from the first, whose cells stand at the left.
    """
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) if at < left else cell.rjust(width) for at, (cell, width) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(padded).rstrip()

    return "\n".join(line(cells) for cells in (head, *rows))


def listing(rows: Sequence[tuple[str, str] | None]) -> str:
    """Names and what they are, one a line; None is an empty line."""
    width = max(len(row[0]) for row in rows if row is not None)
    return "\n".join("" if row is None else f"{row[0]:<{width}}  {row[1]}" for row in rows)
