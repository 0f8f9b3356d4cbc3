"""Transcripts of every format: what models write, and what clients get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.parsing.reading import Read, read
from xlaserve.server.parsing.formats import FORCED_CALLS, forced_call

PARIS = {"city": "Paris", "days": 3}
Calls = list[tuple[str, Any]]

TRANSCRIPTS: list[tuple[str, str, str, Calls]] = [
    # format, what the model wrote, content, calls
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
        "",
        [("get_weather", PARIS)],
    ),
    (
        "hermes",
        (
            'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>'
        ),
        "Let me see.",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("hermes", '<tool_call>{"name": "now"}</tool_call> Done. ', "Done. ", [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null, "id": 7}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"</tool_call>\\"}"}</tool_call>', "", [("f", {"a": "</tool_call>"})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\\"}</tool_call>{"}}</tool_call>', "", [("f", {"a": 'x"}</tool_call>{'})]),
    ("hermes", '<tool_call>{"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}</tool_call>', "", [("f", {"a": [1]})]),
    ("hermes", '<tool_call>[{"name": "f", "arguments": {}}, {"name": "now", "arguments": {}}]</tool_call>', "", [("f", {}), ("now", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", [("f", {"a": 1})]),
    (
        "qwen3_coder",
        (
            "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>"
        ),
        "I look.",
        [("get_weather", PARIS)],
    ),
    (
        "qwen3_xml",
        (
            '<function=get_weather>\n<parameter=city>\nline "one"\n\nline <two>\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n'
            '<parameter=where>\n{"x": [1, null]}\n</parameter>\n<parameter=note>\nnull\n</parameter>\n</function>'
        ),
        "",
        [("get_weather", {"city": 'line "one"\n\nline <two>', "exact": True, "where": {"x": [1, None]}, "note": None})],
    ),
    ("qwen3_coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>\n", "", [("now", {})]),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>3</function>\n</tool_call>",
        "",
        [("get_weather", PARIS)],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n<parameter=x>\n[1, 2]\n</parameter>\n</function>\n</tool_call>",
        "",
        [("f", {"x": [1, 2]})],
    ),
    ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', "", [("get_weather", PARIS)]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; {"name": "now", "parameters": {}}',
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "llama3_json",
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris", "days": 3}}\n{"name": "now", "parameters": {}}',
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("llama3_json", '{"name": "Ann", "parameters": {"age": 3}}', '{"name": "Ann", "parameters": {"age": 3}}', []),
    ("llama3_json", '{"answer": 42}', '{"answer": 42}', []),
    ("pythonic", "[get_weather(city='Paris', days=3), now()]", "", [("get_weather", PARIS), ("now", {})]),
    (
        "llama4_pythonic",
        '<|python_start|>[get_weather(city="it\'s, (x)", where={"a": [1, -2.5, None], \'b\': true}, tags=["a", "b"],)]<|python_end|>',
        "",
        [("get_weather", {"city": "it's, (x)", "where": {"a": [1, -2.5, None], "b": True}, "tags": ["a", "b"]})],
    ),
    ("pythonic", "[get_weather(city=12345, days='3', ratio=2)]", "", [("get_weather", {"city": "12345", "days": 3, "ratio": 2})]),
    ("pythonic", "[get_weather(city=f(x), days=[1)])]", "", [("get_weather", {"city": "f(x)", "days": "[1)]"})]),
    ("pythonic", "[1, 2] are numbers", "[1, 2] are numbers", []),
    ("pythonic", "[a.b-c(x=1)] and more", "and more", [("a.b-c", {"x": 1})]),
    ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]', "", [("get_weather", PARIS)]),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}, "id": "abc"}, {"name": "now", "arguments": {}}]',
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "mistral",
        'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now[ARGS]{}',
        "Sure.",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": "[TOOL_CALLS]"}', "", [("f", {"a": "[TOOL_CALLS]"})]),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', "", [("f", {"a": 1})]),
    (
        "openai",
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json"
            '<|message|>{"city": "Paris", "days": 3}<|call|>'
        ),
        "",
        [("get_weather", PARIS)],
    ),
    (
        "openai",
        (
            '<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris", "days": 3}<|call|>'
            "<|start|>assistant<|channel|>commentary to=functions.now<|message|><|call|>"
        ),
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("openai", "<|channel|>final<|message|>Hello <b>.<|return|>", "Hello <b>.", []),
    ("openai", "plain words", "plain words", []),
    (
        "deepseek_v3",
        (
            "Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "Well.",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "deepseek_v31",
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}<｜tool▁call▁end｜>'
            "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "kimi_k2",
        (
            "Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
            '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>'
            "<|tool_calls_section_end|>"
        ),
        "Ok.",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "glm45",
        (
            "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
            "</tool_call>\n<tool_call>now\n</tool_call>"
        ),
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "glm47",
        (
            "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
            "<tool_call>now</tool_call>"
        ),
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    ("granite", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]', "", [("get_weather", PARIS)]),
    ("granite", '<tool_call>[{"name": "now", "arguments": {}}]', "", [("now", {})]),
    (
        "gemma4",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>',
        "",
        [("get_weather", PARIS), ("now", {})],
    ),
    (
        "gemma4",
        '<|tool_call>call:get_weather{where:{a:[1,<|"|>x{},"\n<|"|>,true,null],<|"|>b c<|"|>:{}},ratio:-0.5,city:Rome}<tool_call|>',
        "",
        [("get_weather", {"where": {"a": [1, 'x{},"\n', True, None], "b c": {}}, "ratio": -0.5, "city": "Rome"})],
    ),
    (
        "functiongemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>",
        "",
        [("get_weather", PARIS)],
    ),
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), TRANSCRIPTS)
def test_calls(form: str, text: str, content: str, calls: Calls) -> None:
    found = read(text, form)
    assert found.content == content
    assert [(name, json.loads(arguments)) for name, arguments in found.calls] == calls


@pytest.mark.parametrize(
    ("form", "text", "prompt", "reasoning", "content"),
    [
        ("qwen3", "<think>\nLet me.\n</think>\n\nHello. ", "", "Let me.", "Hello. "),
        ("qwen3", "Let me.\n</think>\n\nHello.", "<|im_start|>assistant\n<think>\n", "Let me.", "Hello."),
        ("qwen3", "Hello.", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "", "Hello."),
        ("qwen3", " Hello <think>.", "", "", " Hello <think>."),
        ("qwen3", "<think>\n\n</think>\n\nHello.", "", "", "Hello."),
        ("qwen3", "<think>cut of", "", "cut of", ""),
        ("deepseek_r1", "Let me.</think>Hello.", "", "Let me.", "Hello."),
        ("deepseek_r1", "<think>Let me.</think>Hello.", "", "Let me.", "Hello."),
        ("granite", "Here is my thought process: I think.\nHere is my response: Yes.", "", "I think.", "Yes."),
        ("granite", "<think>I think.</think><response>Yes.</response>", "", "I think.", "Yes."),
        ("granite", "Here is my answer.", "", "", "Here is my answer."),
        ("mistral", "[THINK]I think.[/THINK]Yes.", "", "I think.", "Yes."),
        ("gemma4", "<|channel>thought\nI think.<channel|>Yes.", "", "I think.", "Yes."),
        (
            "openai_gptoss",
            "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "",
            "I think.",
            "Yes.",
        ),
        (
            "openai_gptoss",
            (
                "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis to=python<|message|>1+1<|call|>"
                "<|start|>assistant<|channel|>commentary<|message|>Well, <|end|><|channel|>final<|message|>yes.<|return|>"
            ),
            "",
            "One.\n1+1",
            "Well, yes.",
        ),
    ],
)
def test_reasoning(form: str, text: str, prompt: str, reasoning: str, content: str) -> None:
    assert read(text, None, form, prompt=prompt) == Read(content, reasoning)


def test_reasoning_before_calls() -> None:
    text = 'I need it.\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert read(text, "hermes", "qwen3", prompt="<think>\n") == Read("", "I need it.", [("now", "{}")], ["call_0"])
    kimi = "I need it.<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert read(kimi, "kimi_k2", "kimi_k2", prompt="<think>") == Read("", "I need it.", [("now", "{}")], ["functions.now:0"])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "the tag <tool_call> opens a call"),
        ("hermes", '<tool_call>{"nam": '),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f" "arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>[1, 2]</tool_call>"),
        ("hermes", "a < b and <tool_cal> or <tool_call"),
        ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
        ("qwen3_coder", "<tool_call>\n<function></tool_call>"),
        ("qwen3_coder", "<function=two words>"),
        ("glm45", "<tool_call> is a tag"),
        ("llama3_json", '{"name": "get_weather", "other": 1}'),
        ("llama3_json", '{"name": "get_weather"}'),
        ("llama3_json", '{"name": "get_weather", "par'),
        ("pythonic", "[get_weather(3)]"),
        ("pythonic", "[get_weather"),
        ("mistral", "[TOOL_CALLS]two words"),
        ("deepseek_v3", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>nothing"),
        ("kimi_k2", "<|tool_call_begin|> "),
        ("gemma4", "<|tool_call>f{}"),
        ("granite", "<|tool_call|>none"),
    ],
)
def test_what_is_no_call_is_content(form: str, text: str) -> None:
    assert read(text, form) == Read(text)


@pytest.mark.parametrize(
    ("form", "text", "name", "arguments"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', "f", '{"a": "x'),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": [1, ', "f", '{"a": [1, '),
        ("qwen3_coder", "<function=get_weather>\n<parameter=city>\nPar", "get_weather", '{"city": "Par'),
        ("qwen3_coder", "<function=get_weather>\n<parameter=days>\n12", "get_weather", '{"days": 12'),
        ("qwen3_coder", "<function=get_weather>\n<parameter=days>\n12\n</parameter>", "get_weather", '{"days": 12'),
        ("glm45", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Par", "get_weather", '{"city": "Par'),
        ("pythonic", "[get_weather(days=3, city='Par", "get_weather", '{"days": 3, "city": "\'Par'),
        ("pythonic", "[get_weather(city=[)]", "get_weather", '{"city": "[)]'),
        ("gemma4", '<|tool_call>call:f{a:{b:<|"|>x', "f", '{"a": {"b": "x'),
        ("openai", '<|channel|>commentary to=functions.f<|message|>{"a": ', "f", '{"a": '),
    ],
)
def test_a_call_that_breaks_off_keeps_what_there_is(form: str, text: str, name: str, arguments: str) -> None:
    assert read(text, form).calls == [(name, arguments)]


def test_ids() -> None:
    text = "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]f[ARGS]{}"
    assert read(text, "mistral").ids == ["abcdefghi", "call_0"]
    text = "<|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert read(text, "kimi_k2").ids == ["functions.f:3"]


def test_special_tokens_are_left_out_unless_they_are_markers() -> None:
    special = ["<tool_call>", "</tool_call>", "<|im_end|>", "<s>", "<think>", "</think>"]
    text = '<s>Hi<|im_end|> <tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>'
    assert read(text, "hermes", "qwen3", special=special) == Read("Hi", "", [("now", "{}")], ["call_0"])
    assert read("<tool_call>no<|im_end|>", "hermes", special=special) == Read("no")
    assert read("<think>a<s>b</think>c", None, "qwen3", special=special) == Read("c", "ab")


def test_forced_calls() -> None:
    text = '[{"name": "get_weather", "parameters": {"city": "Paris"}}, {"name": "now", "parameters": {}}]'
    assert read(text, FORCED_CALLS).calls == [("get_weather", '{"city": "Paris"}'), ("now", "{}")]
    assert read(' {"city": "}"}', forced_call("get_weather")).calls == [("get_weather", '{"city": "}"}')]
    assert read('ok</think>\n{"city": "x"}', forced_call("get_weather"), "qwen3", prompt="<think>").reasoning == "ok"
