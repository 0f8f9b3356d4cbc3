"""However a text is cut into pieces, its events are the same; nothing that a model writes stops a parser or gets lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.parsing.reading import parser, read, read_events, together
from tests.server.parsing.test_formats import TRANSCRIPTS
from tests.tooling.properties import examples
from xlaserve.server.parsing.formats import FORCED_CALLS, REASONING_FORMATS, TOOL_FORMATS, ToolFormat, forced_call
from xlaserve.server.parsing.harmony import MARKERS

FORMATS: list[ToolFormat | None] = [None, *{id(form): form for form in TOOL_FORMATS.values()}.values(), FORCED_CALLS, forced_call("now")]
_PIECES = [
    *("<think>", "</think>", "[THINK]", "[/THINK]", "Here is my thought process:", "<|channel>thought\n", "<channel|>"),
    *(marker for form in TOOL_FORMATS.values() for marker in (*form.opens, *form.closes, *form.around)),
    *MARKERS,
    *(
        "[ARGS]",
        "[CALL_ID]",
        "<｜tool▁sep｜>",
        "<|tool_call_argument_begin|>",
        '<|"|>',
        "<escape>",
        "call:",
        "to=functions.now ",
        "analysis",
    ),
    *("<parameter=city>", "</parameter>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "```json", "```", "function"),
    *('{"name": "now", "arguments": ', '{"name": "get_weather", "parameters": {"city": "', '"arguments"', '"name"', "get_weather", "now"),
    *('{"', '"}', '"', "\\", '\\"', "{", "}", "[", "]", "(", ")", ",", ":", ";", "=", "'", "city=", "days=3", "12", "null", "True"),
    *(" ", "\n", "a", "é", "😀", "<", "|", "<|", "functions.now:0", "<|im_end|>", "\ud800"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=4)), max_size=24).map("".join)
TRANSCRIBED = st.sampled_from([text for _, text, _, _ in TRANSCRIPTS]).flatmap(
    # What a model wrote, broken off, doubled, or with something else in its middle.
    lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.sampled_from(["", *_PIECES])).map(
        lambda cut: text[: cut[0]] + cut[2] + text[cut[1] :]
    )
)


def cut(text: str, places: list[int]) -> list[str]:
    places = sorted({place for place in places if 0 < place < len(text)})
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]


@examples(600)
@given(
    text=st.one_of(TEXTS, TRANSCRIBED),
    form=st.sampled_from(FORMATS),
    reasoning=st.sampled_from([None, *sorted(REASONING_FORMATS)]),
    prompt=st.sampled_from(["", "<think>\n", "[THINK]"]),
    special=st.sampled_from([(), ("<|im_end|>", "<think>", "<tool_call>", "<|tool_call>")]),
    places=st.lists(st.integers(0, 200), max_size=12),
)
def test_any_chunking(
    text: str, form: ToolFormat | None, reasoning: str | None, prompt: str, special: tuple[str, ...], places: list[int]
) -> None:
    options = {"prompt": prompt, "special": special}
    whole = read_events(parser(form, reasoning, **options), [text])  # type: ignore[arg-type]
    assert read_events(parser(form, reasoning, **options), text) == whole  # type: ignore[arg-type]
    assert read_events(parser(form, reasoning, **options), cut(text, places)) == whole  # type: ignore[arg-type]


@examples(300)
@given(text=st.one_of(TEXTS, TRANSCRIBED), form=st.sampled_from(FORMATS))
def test_every_word_comes_out(text: str, form: ToolFormat | None) -> None:
    # Letters of words that mean nothing to any format, one of a kind, so that each can be found again.
    text = text.replace("a", "") + " Zebra"
    if form is not None and form.channels:
        return
    found = read(text, form)
    assert "Zebra" in found.content + found.reasoning + "".join(name + arguments for name, arguments in found.calls)


@examples(200)
@given(
    arguments=st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.text(max_size=20)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    form=st.sampled_from(
        ["hermes", "llama3_json", "mistral", "deepseek_v3", "kimi_k2", "granite", "openai", "pythonic", "qwen3_coder", "glm45"]
    ),
)
def test_arguments_come_back(arguments: dict[str, object], form: str) -> None:
    plain = json.dumps(arguments, ensure_ascii=False)
    if form in ("pythonic", "qwen3_coder", "glm45"):
        arguments = {key: value for key, value in arguments.items() if re.fullmatch(r"[A-Za-z_]+", key)}
    written = {
        "hermes": f'<tool_call>\n{{"name": "now", "arguments": {plain}}}\n</tool_call>',
        "llama3_json": f'{{"name": "now", "parameters": {plain}}}',
        "mistral": f"[TOOL_CALLS]now[ARGS]{plain}",
        "deepseek_v3": f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{plain}\n```<｜tool▁call▁end｜>",
        "kimi_k2": f"<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{plain}<|tool_call_end|>",
        "granite": f'<|tool_call|>[{{"name": "now", "arguments": {plain}}}]',
        "openai": f"<|channel|>commentary to=functions.now<|message|>{plain}<|call|>",
        "pythonic": f"[now({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]",
    }
    if form in ("qwen3_coder", "glm45"):
        # Strings are written as they are, so only others come back without a schema.
        arguments = {key: value for key, value in arguments.items() if isinstance(value, list | dict | bool | int)}
        values = {key: json.dumps(value) for key, value in arguments.items()}
        tagged = {
            "qwen3_coder": "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()),
            "glm45": "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items()),
        }[form]
        written = {
            "qwen3_coder": f"<tool_call>\n<function=now>\n{tagged}</function>\n</tool_call>",
            "glm45": f"<tool_call>now\n{tagged}</tool_call>",
        }
        if any(marker in tagged for marker in ("<parameter=", "</")) and any("<" in value for value in values.values()):
            return
    found = together(read_events(parser(form, tools={"now": {}}), [written[form]]))
    assert found.content == ""
    assert [(name, json.loads(text)) for name, text in found.calls] == [("now", arguments)]


@pytest.mark.parametrize(
    "opening", ["<tool_call>", '<tool_call>{"name": ', "[TOOL_CALLS]", "<|channel|>", '{"name": "now", "arguments": {"a": ', "["]
)
@pytest.mark.parametrize("form", sorted(TOOL_FORMATS))
def test_deep_and_long_texts_stop_nothing(form: str, opening: str) -> None:
    machine = parser(form, "qwen3")
    for text in (
        opening * 300,
        "call:now{a:" + "[{a:" * 2000,
        "[get_weather(city=" + "[" * 2000 + "]" * 2000 + ")]",
        "{" * 2000,
        " " * 5000,
        opening * 300,
    ):
        machine.feed(text)
    machine.finish()
