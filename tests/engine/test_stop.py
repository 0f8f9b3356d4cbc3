"""Stop strings: the same text gives the same result in whatever pieces it comes, and what was shown is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tooling.properties import examples
from xlaserve.engine.stop import StopMatcher

LETTERS = "abc"
texts = st.text(LETTERS, max_size=24)
stop_sets = st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)


@st.composite
def pieces(draw: st.DrawFn) -> list[str]:
    """A text cut anywhere, empty pieces included."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def feed_all(parts: list[str], stops: tuple[str, ...], *, include: bool) -> tuple[str, str | None, list[str]]:
    """What is shown in the end, the match, and what was shown after each piece."""
    matcher, shown, after = StopMatcher(stops, include=include), "", []
    for part in parts:
        new, stop = matcher.feed(part)
        shown += new
        after.append(shown)
        if stop is not None:
            return shown, stop, after
    return shown + matcher.flush(), None, after


def plain(text: str, stops: tuple[str, ...], *, include: bool) -> tuple[str, str | None]:
    """Letter by letter: the first moment at which the text ends with a stop string, the longest of those."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(found, key=len)
            return text[:end] if include else text[: end - len(stop)], stop
    return text, None


@given(pieces(), stop_sets, st.booleans())
@examples(600)
def test_any_pieces_of_a_text_give_what_the_text_gives(parts: list[str], stops: tuple[str, ...], include: bool) -> None:
    shown, stop, after = feed_all(parts, stops, include=include)
    assert (shown, stop) == plain("".join(parts), stops, include=include)
    for so_far in after:
        assert shown.startswith(so_far), "shown text is never taken back"


@given(pieces(), stop_sets)
@examples(300)
def test_nothing_is_shown_that_a_match_could_still_take_back(parts: list[str], stops: tuple[str, ...]) -> None:
    """After every piece without a match: whatever comes next, what has been shown stays."""
    _, stop, after = feed_all(parts, stops, include=False)
    text = ""
    for part, shown in zip(parts[: len(after) - (stop is not None)], after, strict=False):
        text += part
        for rest in stops:
            for begin in range(len(rest)):
                assert plain(text + rest[begin:], stops, include=False)[0].startswith(shown)


@given(pieces(), stop_sets)
@examples(200)
def test_no_more_is_held_back_than_needed(parts: list[str], stops: tuple[str, ...]) -> None:
    _, stop, after = feed_all(parts, stops, include=False)
    fed = 0
    for part, shown in zip(parts[: len(after) - (stop is not None)], after, strict=False):
        fed += len(part)
        assert fed - len(shown) <= max(map(len, stops)) - 1


@given(pieces(), pieces(), stop_sets)
@examples(300)
def test_a_match_cannot_begin_before_stops_count(early: list[str], late: list[str], stops: tuple[str, ...]) -> None:
    """With `match` off text goes straight through; afterwards the result is that of the rest alone."""
    matcher = StopMatcher(stops, include=False)
    for part in early:
        assert matcher.feed(part, match=False) == (part, None)
    shown, stop = "", None
    for part in late:
        new, stop = matcher.feed(part)
        shown += new
        if stop is not None:
            break
    if stop is None:
        shown += matcher.flush()
    assert (shown, stop) == plain("".join(late), stops, include=False)


@pytest.mark.parametrize(
    ("parts", "stops", "include", "wanted"),
    [
        (["abcd"], ("abcd", "bc"), False, ("a", "bc")),
        (["abc", "d"], ("abcd", "bc"), False, ("a", "bc")),
        (["xxab"], ("b", "ab"), False, ("xx", "ab")),
        (["one two\n", "\nthree"], ("\n\n",), False, ("one two", "\n\n")),
        (["one two\n", "\nthree"], ("\n\n",), True, ("one two\n\n", "\n\n")),
        (["no", "thing"], (), False, ("nothing", None)),
        (["aab"], ("ab",), False, ("a", "ab")),
        (["日本", "語です"], ("本語",), False, ("日", "本語")),
        (["ends with sto"], ("stop",), False, ("ends with sto", None)),
        (["a.b"], (".",), False, ("a", ".")),
    ],
)
def test_examples(parts: list[str], stops: tuple[str, ...], include: bool, wanted: tuple[str, str | None]) -> None:
    assert feed_all(parts, stops, include=include)[:2] == wanted


def test_without_stops_nothing_waits() -> None:
    matcher = StopMatcher((), include=False)
    assert matcher.feed("at once") == ("at once", None)
    assert matcher.flush() == ""
