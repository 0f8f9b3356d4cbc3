from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from xlaserve.errors import InvalidRequestError
from xlaserve.models import chat_template
from xlaserve.models.chat_template import ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
    "assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- message.tool_calls[0].function.arguments | tojson }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA3 = """{{ bos_token }}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {{ '<start_of_turn>' + message['role'] + '\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ '[' + item['text'] | trim + ']' }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
EXTENSIONS = """{% set ns = namespace(found=false) %}
{% for m in messages %}
  {% if m.role == 'skip' %}{% continue %}{% endif %}
  {% if m.role == 'stop' %}{% break %}{% endif %}
  {% generation %}
{{ m.content }}{{ m.reasoning_content }}{{ m.thinking }}
  {% endgeneration %}
  {% set ns.found = true %}
{% endfor %}
{{ ns.found }} {{ {'é': [1, '<a>']} | tojson }} {{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }} {{ extra }}
"""

CHAT = [
    {"role": "user", "content": " Grüße & <b>日本</b> "},
    {"role": "assistant", "content": "Hello! "},
    {"role": "user", "content": "Go on"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object", "properties": {}}}}]
CALL = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, "é"]}}}]},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
REASONED = [
    {"role": "skip"},
    {"role": "assistant", "content": "a", "reasoning": "why"},
    {"role": "stop"},
    {"role": "user", "content": "unseen"},
]

CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    (SMOLLM2, CHAT, {}),
    (SMOLLM2, CHAT, {"add_generation_prompt": False}),
    (SMOLLM2, CHAT[:2], {"add_generation_prompt": False, "continue_final_message": True}),
    (LLAMA3, CHAT, {}),
    (LLAMA3, [{"role": "system", "content": "Be brief. "}, *CHAT], {"date_string": "1 Jan 2030"}),
    (LLAMA3, CHAT[:2], {"add_generation_prompt": False, "continue_final_message": True}),
    (LLAMA3, CHAT, {"tools": TOOLS}),
    (LLAMA3, CALL, {}),
    (GEMMA3, CHAT, {}),
    (GEMMA3, PARTS, {}),
    (GEMMA3, [PARTS[0]], {"add_generation_prompt": False, "continue_final_message": True}),
    (EXTENSIONS, CHAT, {"extra": "yes"}),
    (EXTENSIONS, REASONED, {}),
]


@pytest.mark.parametrize(("source", "messages", "options"), CASES)
def test_equals_transformers(source: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<bos>", chat_template=source)
    options = {"add_generation_prompt": True} | options
    expected = reference.apply_chat_template(messages, tokenize=False, **options)
    known = {name: options.pop(name) for name in ("tools", "add_generation_prompt", "continue_final_message") if name in options}
    assert ChatTemplate(source).render(messages, **known, variables={"bos_token": "<bos>", **options}) == expected


def test_parts_are_joined_where_the_template_expects_a_string() -> None:
    assert "user\none\ntwo<|im_end|>" in ChatTemplate(SMOLLM2).render(PARTS)
    assert "one\ntwo<|eot_id|>" in ChatTemplate(LLAMA3).render(PARTS, variables={"bos_token": ""})
    assert "[one][two]" in ChatTemplate(GEMMA3).render(PARTS, variables={"bos_token": ""})
    indirect = "{% for m in messages %}{% set parts = m.content %}{% for p in parts %}<{{ p.text }}>{% endfor %}{% endfor %}"
    assert ChatTemplate(indirect).render(PARTS) == "<one><two>"


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "one"}], "name": None}]
    ChatTemplate(SMOLLM2).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "one"}], "name": None}]


def test_today() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y') }}").render([{"role": "user"}])
    assert abs(int(rendered) - datetime.now().year) <= 1


@pytest.mark.parametrize(
    ("messages", "field", "message"),
    [
        ([], "messages", "at least one message"),
        ("hello", "messages", "must be a list"),
        ({"role": "user"}, "messages", "must be a list"),
        (["hello"], "messages[0]", "must be an object with a role, got 'hello'"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], "messages[1]", "must be an object with a role"),
        ([{"role": 3}], "messages[0]", "must be an object with a role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0]",
            "got 'image_url': this model reads text only",
        ),
        ([{"role": "user", "content": [3]}], "messages[0].content[0]", 'must be a part of type "text", got 3'),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]", "text must be a string, got None"),
        ([{"role": "user", "content": object()}], "messages[0]", "only JSON values, got object"),
        ([{"role": "user", "content": b"x"}], "messages[0]", "only JSON values, got bytes"),
        ([{"role": "user", "content": {"a": 1}}], "messages", "cannot render these messages"),
        ([{"role": "user"}], "messages", "cannot render these messages: 'dict object' has no attribute 'content'"),
    ],
)
def test_bad_messages_are_named(messages: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(SMOLLM2).render(messages)
    assert message in str(caught.value)
    assert caught.value.field == field


def test_what_the_template_refuses_reaches_the_user() -> None:
    with pytest.raises(InvalidRequestError, match="Conversation roles must alternate"):
        ChatTemplate(GEMMA3).render([{"role": "assistant", "content": "x"}], variables={"bos_token": ""})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''.format_map.__func__ }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ nothing.at.all }}",
        "{{ 'x' * 'y' }}",
    ],
)
def test_hostile_and_broken_templates_are_bad_requests_and_nothing_more(source: str) -> None:
    template = ChatTemplate(source)
    try:
        rendered = template.render([{"role": "user", "content": "x"}])
    except InvalidRequestError as error:
        assert error.field == "messages"  # noqa: PT017  (an empty rendering is as good)
    else:
        assert rendered == ""


@pytest.mark.parametrize("source", ["{% set ns = namespace(__init__=1) %}", "{% set ns = namespace() %}{% set ns.__class__ = 1 %}"])
def test_a_namespace_holds_no_private_names(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="a namespace cannot hold the name"):
        ChatTemplate(source).render([{"role": "user"}])


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% nonsense %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"])
def test_source_that_is_no_template(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="not valid Jinja"):
        ChatTemplate(source).render([{"role": "user", "content": [{"type": "text", "text": "x"}]}])


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARACTERS", 1000)
    monkeypatch.setattr(chat_template, "MAX_TEMPLATE_CHARACTERS", 100)
    doubling = "{% for i in range(99) %}{{ messages[0].content }}{% endfor %}"
    assert len(ChatTemplate(doubling).render([{"role": "user", "content": "x" * 10}])) == 990
    with pytest.raises(InvalidRequestError, match="exceeds the limit of 1000 characters"):
        ChatTemplate(doubling).render([{"role": "user", "content": "x" * 11}])
    with pytest.raises(InvalidRequestError, match="101 characters, more than the limit of 100"):
        ChatTemplate("x" * 101).render([{"role": "user"}])


@pytest.mark.parametrize(
    ("source", "messages", "options", "message"),
    [
        (SMOLLM2, CHAT, {"continue_final_message": True}, "cannot be used together with add_generation_prompt"),
        (
            SMOLLM2,
            [{"role": "user", "content": ""}, {"role": "assistant"}],
            {"continue_final_message": True, "add_generation_prompt": False},
            "needs a last message",
        ),
        (
            "{{ messages[0].content }}",
            CHAT,
            {"continue_final_message": True, "add_generation_prompt": False},
            "leaves out the last message",
        ),
    ],
)
def test_continuing_what_cannot_be_continued(source: str, messages: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        ChatTemplate(source).render(messages, **options)
    assert caught.value.field == "continue_final_message"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_cannot_replace_the_conversation(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"must not set {name}") as caught:
        ChatTemplate(SMOLLM2).render(CHAT, variables={name: []})
    assert caught.value.field == "chat_template_kwargs"
