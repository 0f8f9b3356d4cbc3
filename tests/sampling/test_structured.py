"""What a form may be, before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from xlaserve import SamplingParams
from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.structured import MAX_CHOICES, MAX_GRAMMAR_BYTES, MAX_REGEX_BYTES, MAX_SCHEMA_DEPTH, StructuredOutput


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


GOOD: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {"type": "object", "required": ["b", "a"]}}, '{"type":"object","required":["b","a"]}'),
    ({"json_schema": '{"type":  "object"}'}, '{"type":  "object"}'),
    ({"json_object": True}, ""),
    ({"regex": "a+"}, "a+"),
    ({"choice": ["a", "é"]}, '["a", "\\u00e9"]'),
    ({"grammar": 'start: "a"'}, 'start: "a"'),
    ({"structural_tag": {"type": "structural_tag"}}, '{"type":"structural_tag"}'),
    ({"json_schema": nested(MAX_SCHEMA_DEPTH)}, json.dumps(nested(MAX_SCHEMA_DEPTH), separators=(",", ":"))),
]


@pytest.mark.parametrize(("form", "source"), GOOD)
def test_a_form_is_one_thing_that_crosses_between_processes(form: dict[str, Any], source: str) -> None:
    structured = StructuredOutput(**form, after="</think>")
    assert structured.kind == next(iter(form))
    assert structured.source == source
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(structured), type=StructuredOutput)
    assert again == structured
    assert len({again, structured, StructuredOutput(**form, after="</think>", field="guided")}) == 1
    assert StructuredOutput(**form) != structured
    assert SamplingParams(structured=structured).structured is structured


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "structured_outputs", "exactly one of .* got none"),
    ({"regex": "a", "choice": ["a"]}, "structured_outputs", "exactly one of .* got regex and choice"),
    ({"json_object": "yes"}, "structured_outputs.json_object", "true or false"),
    ({"json_schema": "{"}, "structured_outputs.json_schema", "no JSON"),
    ({"json_schema": "[1]"}, "structured_outputs.json_schema", "must be an object"),
    ({"json_schema": "[" * 100_000}, "structured_outputs.json_schema", "no JSON"),
    ({"json_schema": {"a": {1, 2}}}, "structured_outputs.json_schema", "cannot be written as JSON"),
    ({"json_schema": nested(MAX_SCHEMA_DEPTH + 1)}, "structured_outputs.json_schema", "64 deep"),
    ({"json_schema": {"enum": ["x" * MAX_GRAMMAR_BYTES]}}, "structured_outputs.json_schema", "at most"),
    ({"regex": ""}, "structured_outputs.regex", "non-empty"),
    ({"regex": 5}, "structured_outputs.regex", "non-empty"),
    ({"regex": "a\0"}, "structured_outputs.regex", "NUL"),
    ({"regex": "\ud800"}, "structured_outputs.regex", "surrogate"),
    ({"regex": "a" * (MAX_REGEX_BYTES + 1)}, "structured_outputs.regex", "at most 8192 bytes, got 8193"),
    ({"choice": "ab"}, "structured_outputs.choice", "list of strings"),
    ({"choice": []}, "structured_outputs.choice", "list of strings"),
    ({"choice": ["a", ""]}, "structured_outputs.choice", "non-empty"),
    ({"choice": ["a"] * (MAX_CHOICES + 1)}, "structured_outputs.choice", "at most 2048 strings"),
    ({"choice": ["é" * MAX_GRAMMAR_BYTES]}, "structured_outputs.choice", "at most"),
    ({"choice": ["a" * 1000] * 1000}, "structured_outputs.choice", "at most"),
    ({"grammar": "a" * (MAX_GRAMMAR_BYTES + 1)}, "structured_outputs.grammar", "at most"),
    ({"structural_tag": 5}, "structured_outputs.structural_tag", "must be an object"),
    ({"regex": "a", "whitespace": "some"}, "structured_outputs.regex", "whitespace"),
    ({"regex": "a", "after": ""}, "structured_outputs.regex", "after"),
    ({"regex": "(", "field": "guided_regex", "after": "x" * 300}, "guided_regex", "after may have at most 256 bytes"),
]


@pytest.mark.parametrize(("form", "field", "message"), BAD)
def test_what_is_wrong_is_named(form: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        StructuredOutput(**form)
    assert caught.value.field == field


def test_parameters_take_forms_only() -> None:
    with pytest.raises(InvalidRequestError, match="must be a StructuredOutput"):
        SamplingParams(structured={"regex": "a"})  # type: ignore[arg-type]
