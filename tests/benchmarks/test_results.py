"""Sections of RESULTS.md: each script writes its own and touches no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results import RESULTS, replace_section


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "RESULTS.md"


def test_a_new_section_goes_to_the_end(path: Path) -> None:
    replace_section(path, "peers", "## Peers\n\nfirst")
    replace_section(path, "profiles", "## Profiles")
    text = path.read_text()
    assert text.startswith("# Results\n")
    assert text.index("## Peers") < text.index("<!-- end of section: peers -->") < text.index("<!-- section: profiles -->")


def test_only_its_own_section_changes(path: Path) -> None:
    for name in ("one", "two", "three"):
        replace_section(path, name, f"## {name}\n\nold {name}")
    path.write_text(path.read_text().replace("<!-- section: three -->", "By hand, between sections.\n\n<!-- section: three -->"))
    before = path.read_text()
    replace_section(path, "two", "## two\n\nnew, with <!-- a comment --> and | a | table |")
    assert path.read_text() == before.replace("old two", "new, with <!-- a comment --> and | a | table |")


def test_writing_the_same_again_changes_nothing(path: Path) -> None:
    for _ in range(2):
        replace_section(path, "peers", "text\n\n")
        replace_section(path, "roofs", "more")
    assert path.read_text().count("text") == 1
    again = path.read_text()
    replace_section(path, "peers", "text")
    assert path.read_text() == again


def test_a_name_that_begins_another_is_another(path: Path) -> None:
    replace_section(path, "peers-gpu", "on a card")
    replace_section(path, "peers", "on a processor")
    replace_section(path, "peers", "again")
    assert "on a card" in path.read_text()
    assert "on a processor" not in path.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("<!-- end of section: peers -->", ""),
        lambda text: text.replace("<!-- section: peers -->", ""),
        lambda text: text + "\n<!-- section: peers -->\n<!-- end of section: peers -->\n",
    ],
)
def test_markers_that_are_no_pair_are_refused(path: Path, damage) -> None:
    replace_section(path, "peers", "text")
    path.write_text(damage(path.read_text()))
    before = path.read_text()
    with pytest.raises(ValueError, match="once each"):
        replace_section(path, "peers", "other")
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["", "Peers", "a b", "-->"])
def test_a_name_that_cannot_be_marked_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name of a section"):
        replace_section(path, name, "text")


def test_a_text_that_holds_a_marker_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="marker"):
        replace_section(path, "peers", "text\n<!-- section: other -->\n")
    assert not path.exists()


def test_what_is_committed_can_be_written_to(tmp_path: Path) -> None:
    if RESULTS.exists():
        copy = tmp_path / "copy.md"
        copy.write_text(RESULTS.read_text())
        replace_section(copy, "peers", "text")
