"""Each kind of damage to artifacts, and of difference between them and this machine, is answered with the line that docs/damages.md has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.buckets.damages import CASES, answer, make, row

DOCUMENT = Path(__file__).parents[2] / "docs" / "damages.md"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "DIR"
    make(directory)
    return directory


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_what_is_wrong_and_what_was_done(name: str, whole: Path, tmp_path: Path) -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {name} |")]
    assert [row(name, answer(CASES[name], whole, tmp_path))] == lines


def test_the_table_has_no_other_rows() -> None:
    rows = [line.split("|")[1].strip() for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == list(CASES)
