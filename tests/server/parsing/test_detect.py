"""Formats are told from templates by the markers that real templates of each family hold; here in short templates of our own."""

from __future__ import annotations

import pytest

from xlaserve.server.parsing.detect import reasoning_format, tool_call_format
from xlaserve.server.parsing.formats import REASONING_FORMATS, TOOL_FORMATS

QWEN25 = "{% if tools %}<tools>{{ tools }}</tools> within <tool_call></tool_call> tags{% endif %}"
QWEN3 = QWEN25 + "{% if '</think>' in content %}{{ content.split('</think>')[-1] }}{% endif %}"
TEMPLATES: list[tuple[str, str, str | None, str | None]] = [
    ("chatml", "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}", None, None),
    ("qwen 2.5, hermes", QWEN25, "hermes", None),
    ("qwen 3", QWEN3, "hermes", "qwen3"),
    ("qwen 3 coder", "<tool_call>\n<function=example>\n<parameter=one>\n", "qwen3_coder", None),
    ("qwen 3.5", "<tool_call>\n<function={{ name }}>\n<parameter={{ key }}>\n</parameter><think></think>", "qwen3_coder", "qwen3"),
    ("llama 3.1", "{{ bos_token }}Environment: ipython <|python_tag|>{{ tools }}<|eot_id|>", "llama3_json", None),
    ("llama 3.2", '{"name": function name, "parameters": dictionary of argument name and its value}', "llama3_json", None),
    ("llama 4", "<|python_start|>[func_name1(params_name1=params_value1)]<|python_end|>", "llama4_pythonic", None),
    ("pythonic", "[func_name1(params_name1=params_value1, params_name2=params_value2...)]", "pythonic", None),
    ("mistral", "[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS][TOOL_CALLS]", "mistral", None),
    ("magistral", "[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}[THINK][/THINK]", "mistral", "mistral"),
    ("gpt-oss", "<|start|>assistant<|channel|>commentary to=functions.{{ name }}<|message|>", "openai", "openai_gptoss"),
    ("deepseek v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ type }}<｜tool▁sep｜>", "deepseek_v31", None),
    ("deepseek r1", "{{ content.split('</think>')[-1] }}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek_v31", "qwen3"),
    ("kimi k2", "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>", "kimi_k2", None),
    ("kimi k2 thinking", "<think></think><|tool_calls_section_begin|><|tool_call_begin|>", "kimi_k2", "kimi_k2"),
    (
        "glm 4.5",
        "<tool_call>{{ name }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value></tool_call><think></think>",
        "glm45",
        "qwen3",
    ),
    ("granite 3.2", "<|tool_call|>{{ tools }} Here is my thought process: Here is my response:", "granite", "granite"),
    ("granite 4", "{{ tools }}<tool_call></tool_call>", "hermes", None),
    ("gemma 4", "<|tool_call>call:{{ name }}{ }<tool_call|><|channel>thought\n<channel|>", "gemma4", "gemma4"),
    ("function gemma", "<start_function_call>call:{{ name }}{ }<end_function_call>", "functiongemma", None),
]


@pytest.mark.parametrize(("model", "template", "calls", "reasoning"), TEMPLATES, ids=[row[0] for row in TEMPLATES])
def test_formats(model: str, template: str, calls: str | None, reasoning: str | None) -> None:
    assert tool_call_format([template]) == calls
    assert reasoning_format([template]) == reasoning
    assert calls is None or calls in TOOL_FORMATS
    assert reasoning is None or reasoning in REASONING_FORMATS


def test_any_of_several_templates_counts() -> None:
    assert tool_call_format(["{{ messages }}", QWEN25]) == "hermes"
