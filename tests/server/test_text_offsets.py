"""`text_offset` is where a token begins in the text, whatever its bytes, its prompt and the pieces that it came in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.server.scripted_engine import ByteTokenizer
from xlaserve.engine.outputs import Logprob
from xlaserve.server.logprobs import Echo, LogprobWriter
from xlaserve.server.prompts import Truncation

TOKENIZER = ByteTokenizer()
BOS = 256


def entries(tokens: list[int]) -> list[dict[int, Logprob]]:
    return [{token: Logprob(-1.0, 1, "x")} for token in tokens]


def offsets(writer: LogprobWriter, tokens: list[int]) -> list[int]:
    written = writer.write(0, tokens, entries(tokens))
    assert written is not None
    return written["text_offset"]


def test_parts_of_a_character_begin_where_it_does() -> None:
    assert offsets(LogprobWriter(TOKENIZER, 0, chat=False), list("a€b😀c".encode())) == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]


def test_bytes_that_are_no_character_are_their_own_tokens() -> None:
    # As the text shows them: "x", U+FFFD, "z", U+FFFD for two bytes, "€", U+FFFD.
    tokens = [*b"x", 0xE2, *b"z", 0xE2, 0x82, *"€".encode(), 0xFF, *b"y"]
    assert bytes(tokens).decode("utf-8", "replace") == "x\ufffdz\ufffd€\ufffdy"
    assert offsets(LogprobWriter(TOKENIZER, 0, chat=False), tokens) == [0, 1, 2, 3, 3, 4, 4, 4, 5, 6]


def test_parts_of_characters_can_be_told_apart() -> None:
    likely = {0xE2: Logprob(-0.1, 1, "\ufffd"), 0xF0: Logprob(-2.0, 2, "\ufffd"), 97: Logprob(-3.0, 3, "a")}
    written = LogprobWriter(TOKENIZER, 2, chat=False).write(0, [0xF0], [likely])
    assert written is not None
    assert written["tokens"] == ["bytes:\\xf0"]
    assert written["top_logprobs"] == [{"bytes:\\xe2": -0.1, "bytes:\\xf0": -2.0, "a": -3.0}]


@given(text=st.text(max_size=12), cut=st.integers(0, 30))
def test_pieces_have_the_offsets_of_the_whole(text: str, cut: int) -> None:
    tokens = list(text.encode())
    whole = offsets(LogprobWriter(TOKENIZER, 0, chat=False), tokens)
    writer = LogprobWriter(TOKENIZER, 0, chat=False)
    assert offsets(writer, tokens[:cut]) + offsets(writer, tokens[cut:]) == whole
    expected = [number for number, character in enumerate(text) for _ in character.encode()]
    assert whole == expected


@given(prompt=st.text(min_size=1, max_size=8), answer=st.text(max_size=8))
def test_an_echoed_prompt_ends_where_its_text_ends(prompt: str, answer: str) -> None:
    """Its special token is not in the text, and adds nothing."""
    tokens = [BOS, *prompt.encode()]

    def echoed(_: int) -> Echo:
        return prompt, [(token, None) for token in tokens]

    found = offsets(LogprobWriter(TOKENIZER, 0, chat=False, echoed=echoed), list(answer.encode()))
    assert found == [0, *(number for number, character in enumerate(prompt + answer) for _ in character.encode())]


@given(ids=st.lists(st.integers(0, 9), max_size=12), tokens=st.integers(1, 12), keep_end=st.booleans(), suffix=st.booleans())
def test_truncation_keeps_what_stands_around_a_text(ids: list[int], tokens: int, keep_end: bool, suffix: bool) -> None:
    around = [100, 101] if suffix else [100]
    whole = [100, *ids, *around[1:]]
    kept = Truncation(tokens, keep_end).ids(whole, around)
    assert len(kept) == min(tokens, len(whole))
    if len(whole) <= tokens:
        assert kept == whole
    elif tokens > len(around):
        assert [kept[0], *kept[len(kept) - len(around) + 1 :]] == around
        inner = kept[1 : len(kept) - len(around) + 1]
        assert inner == (ids[len(ids) - len(inner) :] if keep_end else ids[: len(inner)])
