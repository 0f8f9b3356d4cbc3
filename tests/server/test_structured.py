"""The fields that ask for a form, and what they come to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.live import Live
from tests.server.test_bad_input import PATHS, PROMPTS, assert_error
from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.structured import StructuredOutput
from xlaserve.server.protocol import CompletionRequest
from xlaserve.server.structured import structured_output

SCHEMA = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}}}}
CLOSED = {
    "type": "object",
    "properties": {"a": {"type": "object", "properties": {"b": {}}, "additionalProperties": False}},
    "additionalProperties": False,
}
TAG = {"type": "structural_tag", "structures": [], "triggers": []}


def asked(**fields: Any) -> StructuredOutput | None:
    return structured_output(CompletionRequest.model_validate({"prompt": "x", **fields}))


CASES: list[tuple[dict[str, Any], dict[str, Any] | None, str]] = [
    ({}, None, ""),
    ({"response_format": {"type": "text"}}, None, ""),
    ({"response_format": None, "structured_outputs": {}}, None, ""),
    ({"structured_outputs": {"json": None, "json_object": False}}, None, ""),
    ({"response_format": {"type": "json_object"}}, {"json_object": True}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        {"json_schema": SCHEMA},
        "response_format.json_schema.schema",
    ),
    ({"response_format": TAG}, {"structural_tag": TAG}, "response_format"),
    ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}, "structured_outputs.json"),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json_schema": json.dumps(SCHEMA)}, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": True, "regex": None}}, {"json_object": True}, "structured_outputs.json_object"),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"json_schema": SCHEMA, "whitespace": "none"},
        "structured_outputs.json",
    ),
    (
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}},
        {"json_schema": SCHEMA, "whitespace_pattern": " ?"},
        "structured_outputs.json",
    ),
    (
        {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_additional_properties": True}},
        {"json_schema": CLOSED},
        "structured_outputs.json",
    ),
    ({"structured_outputs": {"regex": "a", "_backend": "x"}}, {"regex": "a"}, "structured_outputs.regex"),
    (
        {"structured_outputs": {"choice": ["a", "b"]}, "response_format": {"type": "text"}},
        {"choice": ["a", "b"]},
        "structured_outputs.choice",
    ),
    ({"structured_outputs": {"grammar": "g"}}, {"grammar": "g"}, "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, {"structural_tag": json.dumps(TAG)}, "structured_outputs.structural_tag"),
    ({"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"}, {"json_schema": SCHEMA, "whitespace_pattern": " ?"}, "guided_json"),
    ({"guided_regex": "a"}, {"regex": "a"}, "guided_regex"),
    ({"guided_choice": ["a"]}, {"choice": ["a"]}, "guided_choice"),
    ({"guided_grammar": "g"}, {"grammar": "g"}, "guided_grammar"),
]


@pytest.mark.parametrize(("fields", "form", "field"), CASES, ids=range(len(CASES)))
def test_fields_come_to_one_form(fields: dict[str, Any], form: dict[str, Any] | None, field: str) -> None:
    found = asked(**fields)
    assert found == (None if form is None else StructuredOutput(**form))
    assert found is None or found.field == field


def test_what_a_client_wrote_is_not_changed() -> None:
    schema = json.loads(json.dumps(SCHEMA))
    asked(structured_outputs={"json": schema, "disable_additional_properties": True})
    assert schema == SCHEMA


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        {"guided_regex": "a", "guided_choice": ["a"]},
        {"structured_outputs": {"regex": "a", "json": {}}},
    ],
)
def test_two_forms_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"exclude each other|takes one of"):
        asked(**fields)


@pytest.mark.parametrize("kind", sorted(PATHS))
def test_a_form_is_checked_and_reaches_the_engine(kind: str, shared: Live) -> None:
    body = {**PROMPTS[kind], "max_tokens": 2, "structured_outputs": {"regex": "a|b"}}
    assert shared.client.post(PATHS[kind], json=body).status_code == 200
    assert_error(400, shared.client.post(PATHS[kind], json={**body, "structured_outputs": {"regex": "("}}))
    streamed = shared.client.post(PATHS[kind], json={**body, "structured_outputs": {"regex": "("}, "stream": True})
    assert assert_error(400, streamed)["param"] == "structured_outputs.regex"
