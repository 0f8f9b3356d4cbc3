"""Segments follow from what was said, not from how it was cut."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.scripted_chat import TURN
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart
from xlaserve.server.segments import Close, Open, Piece, Segments, Step

TOLD = list[tuple[str, str, str]]


def told(batches: Iterable[list[OutputEvent]]) -> TOLD:
    """Kind, name and text of each segment; fails where the steps are out of order."""
    segments = Segments()
    steps: list[Step] = [step for events in batches for step in segments.feed(events)] + segments.finish()
    result: TOLD = []
    open_now: Open | None = None
    for step in steps:
        match step:
            case Open():
                assert open_now is None
                open_now = step
                result.append((step.kind, step.name, ""))
            case Piece(text):
                assert open_now is not None
                assert text
                result[-1] = (*result[-1][:2], result[-1][2] + text)
            case Close():
                assert open_now is not None
                open_now = None
    assert open_now is None
    return result


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (
            TURN,
            [
                ("reasoning", "", "I should look."),
                ("text", "", "\n\nLet me see.\n"),
                ("tool", "look", '{"at": "it"}'),
                ("tool", "wait", "{}"),
            ],
        ),
        ([], [("text", "", "")]),
        ([Content("\n")], [("text", "", "\n")]),
        ([Reasoning("\n\n"), Content("Hi")], [("text", "", "Hi")]),
        ([Reasoning("so"), Content("\n")], [("reasoning", "", "so")]),
        ([Content("a"), Reasoning(" "), Content("b"), Reasoning("c")], [("text", "", "ab"), ("reasoning", "", "c")]),
        ([ToolCallStart(0, "x", "f")], [("tool", "f", "")]),
    ],
)
def test_segments(events: list[OutputEvent], expected: TOLD) -> None:
    assert told([events]) == expected


texts = st.text(alphabet=" \nab", max_size=4)
said = st.lists(
    st.one_of(
        texts.map(Content),
        texts.map(Reasoning),
        texts.map(lambda text: ToolCallStart(0, text, "f")),
    ),
    max_size=8,
)


@given(said, st.data())
def test_however_it_is_cut(events: list[OutputEvent], data: st.DataObject) -> None:
    pieces: list[OutputEvent] = []
    for event in events:
        if isinstance(event, Content | Reasoning) and event.text:
            at = data.draw(st.integers(0, len(event.text)))
            pieces += [type(event)(event.text[:at]), type(event)(event.text[at:])]
        else:
            pieces.append(event)
        if isinstance(event, ToolCallStart):
            pieces.append(ToolCallArguments(0, ""))
    cut = data.draw(st.integers(0, len(pieces)))
    assert told([pieces[:cut], pieces[cut:]]) == told([events])
