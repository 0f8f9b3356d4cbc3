"""From the fields that ask for a form to `StructuredOutput`: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.structured import StructuredOutput
from xlaserve.server.engine import Engine
from xlaserve.server.errors import shown
from xlaserve.server.protocol import GenerationRequest

_KINDS = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
_GUIDED = ("json", "regex", "choice", "grammar")
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")


async def checked_structure(
    request: GenerationRequest, engine: Engine, *, after: str | None = None, calls: StructuredOutput | None = None
) -> StructuredOutput | None:
    """The form that a request asks for, which the engine can follow; None where it asks for none.

    Args:
        request: the parsed body.
        engine: is asked whether it can.
        after: what the model writes before its answer.
        calls: the form of the tool calls that the request requires, which are its answer.

    Raises:
        InvalidRequestError: a value is wrong, fields contradict each other, or the form cannot be used.
    """
    structured = structured_output(request)
    if structured is not None and calls is not None:
        field = (structured.field or "").partition(".")[0]
        raise InvalidRequestError(f"`{field}` and a `tool_choice` that requires a call exclude each other: leave one out.", field=field)
    structured = calls if structured is None else replace(structured, after=after)
    if structured is not None:
        await engine.check(structured)
    return structured


def structured_output(request: GenerationRequest) -> StructuredOutput | None:
    """The form that a request asks for, not compiled yet; None where it asks for none.

    Raises:
        InvalidRequestError: a value is wrong, or fields contradict each other.
    """
    asked = [*_from_response_format(request.response_format), *_from_structured_outputs(request.structured_outputs)]
    for kind in _GUIDED:
        name = f"guided_{kind}"
        if (value := getattr(request, name)) is not None:
            asked.append({_KINDS[kind]: value, "field": name, "whitespace_pattern": request.guided_whitespace_pattern})
    if len(asked) > 1:
        names = [str(form["field"]).partition(".")[0] for form in asked]
        raise InvalidRequestError(
            f"{' and '.join(f'`{name}`' for name in names)} exclude each other: leave all but one out.", field=names[-1]
        )
    return StructuredOutput(**asked[0]) if asked else None


def _from_response_format(given: dict[str, Any] | None) -> list[dict[str, Any]]:
    kind = (given or {"type": "text"}).get("type")
    if kind == "text":
        return []
    assert given is not None
    if kind == "json_object":
        return [{"json_object": True, "field": "response_format"}]
    if kind == "structural_tag":
        return [{"structural_tag": given, "field": "response_format"}]
    if kind != "json_schema":
        raise InvalidRequestError(
            f"`response_format.type` must be one of {', '.join(_FORMATS)}, got {shown(kind)}.", field="response_format.type", value=kind
        )
    named = given.get("json_schema")
    field = "response_format.json_schema"
    if not isinstance(named, dict) or not isinstance(schema := cast("dict[str, Any]", named).get("schema"), dict):
        raise InvalidRequestError(f"`{field}` must be an object with a `name` and a `schema`, which is an object.", field=field)
    return [{"json_schema": schema, "field": f"{field}.schema"}]


def _from_structured_outputs(given: dict[str, Any] | None) -> list[dict[str, Any]]:
    field = "structured_outputs"
    kinds = [name for name in _KINDS if (given or {}).get(name) not in (None, False)]
    if given is None or not kinds:
        return []
    if len(kinds) > 1:
        raise InvalidRequestError(f"`{field}` takes one of {', '.join(_KINDS)}, got {' and '.join(kinds)}.", field=field, value=kinds)
    value = given[kinds[0]]
    if kinds[0] == "json" and given.get("disable_additional_properties") is True:
        value = _closed(_parsed(value))
    form: dict[str, Any] = {_KINDS[kinds[0]]: value, "field": f"{field}.{kinds[0]}", "whitespace_pattern": given.get("whitespace_pattern")}
    if given.get("disable_any_whitespace") is True:
        form["whitespace"] = "none"
    return [form]


def _parsed(schema: Any) -> Any:
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError):
        return schema  # what is wrong with it is said where it is looked at


def _closed(schema: Any) -> Any:
    """The schema, in which objects have no properties but those that it names."""
    # A list in place of recursion: how deep a schema may be is checked later.
    copy: list[Any] = [schema]
    open_places: list[tuple[Any, Any]] = [(copy, 0)]
    while open_places:
        holder, place = open_places.pop()
        value = holder[place]
        if isinstance(value, dict):
            value = holder[place] = dict(cast("dict[str, Any]", value))
            if "properties" in value:
                value.setdefault("additionalProperties", False)
            open_places += [(value, key) for key in value]
        elif isinstance(value, list):
            value = holder[place] = list(cast("list[Any]", value))
            open_places += [(value, index) for index in range(len(value))]
    return copy[0]
