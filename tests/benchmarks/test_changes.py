"""The table of what changes brought: medians over turns, and ratios that say how much faster."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.changes import CHANGES, ROOT, main, section

PANELS = next(change for change in CHANGES if change.name == "panels")


def test_a_line_compares_the_medians_of_both_commits() -> None:
    key = "generate-1-128 at 128, ms"
    runs = [
        {"commit": commit, "form": "int8", "values": {key: ms}}
        for commit, times in ((PANELS.before, (12.0, 10.0, 90.0)), (PANELS.after, (8.0, 7.0, 1.0)))
        for ms in times
    ]
    text = section({"panels": runs})
    assert f"| {PANELS.what} | {PANELS.after} | int8 | {key} | 12.00 | 7.00 | 1.71 | 1.43 to 90.00 |" in text


def test_more_tokens_a_second_are_faster() -> None:
    change = next(change for change in CHANGES if not change.graphs)
    runs = [
        {"commit": commit, "form": "float32", "values": {"32 requests, tokens/s": rate}}
        for commit, rate in ((change.before, 100.0), (change.after, 150.0))
    ]
    assert "| 100.00 | 150.00 | 1.50 | 1.50 to 1.50 |" in section({change.name: runs})


def test_what_was_not_measured_has_no_line() -> None:
    assert PANELS.what not in section({})


def test_commits_are_of_this_history() -> None:
    if (
        subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--is-shallow-repository"], capture_output=True, text=True).stdout.strip()
        != "false"
    ):
        pytest.skip("a clone without history")
    for change in CHANGES:
        for commit in (change.before, change.after):
            subprocess.run(["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit, "HEAD"], check=True, capture_output=True)


def test_an_unknown_change_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["panel"])
    assert "panel: no such change; there are weight-pages, panels" in capsys.readouterr().err
