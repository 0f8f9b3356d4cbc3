"""From the bodies of Anthropic's endpoints to chat completion requests."""

from __future__ import annotations

import re
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.anthropic.conversation import chat_messages
from xlaserve.server.anthropic.protocol import CountTokens, CreateMessage
from xlaserve.server.errors import shown
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.translation import Names, chat_request, in_terms_of, shared_fields

NAMES: Names = (
    (re.compile(r"^max_completion_tokens$"), "max_tokens"),
    (re.compile(r"^stop$"), "stop_sequences"),
    (re.compile(r"^tools\.(\d+)\.function\.parameters\b"), r"tools.\1.input_schema"),
    (re.compile(r"^tools\.(\d+)\.function\b"), r"tools.\1"),
    (re.compile(r"^tool_choice\.function\b"), "tool_choice"),
    (re.compile(r"^response_format\.json_schema\.schema\b"), "output_config.format.schema"),
    (re.compile(r"^response_format\b"), "output_config.format"),
    (re.compile(r"^reasoning_effort$"), "output_config.effort"),
)
"""What this API calls the fields of a chat completion request."""

# Parts of Anthropic's service that are not the model's, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {"container": (), "mcp_servers": ([],)}
# Hints and bookkeeping that change nothing in the answer.
_HINTS = frozenset(
    {"betas", "cache_control", "context_management", "diagnostics", "inference_geo", "service_tier", "speed", "user_profile_id"}
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = ("enabled", "adaptive", "between_tools", "disabled")


def to_chat(body: CountTokens) -> ChatCompletionRequest:
    """The chat completion request that asks for the same.

    Raises:
        InvalidRequestError, pydantic.ValidationError: the body asks for something that this server does not have, or is wrong.
    """
    for name, harmless in _REFUSED.items():
        value = (body.model_extra or {}).get(name)
        if value is not None and value not in harmless:
            raise InvalidRequestError(f"`{name}` is not supported by this server: leave it out.", field=name, value=value)
    fields = shared_fields(body, known=frozenset({*_REFUSED, *_HINTS}))
    fields |= {"model": body.model, "messages": chat_messages(body.system, body.messages)}
    last = fields["messages"][-1]
    if last["role"] == "assistant":
        if last.get("tool_calls"):
            message = "`messages` must not end with a call of a tool: its result must follow."
            raise InvalidRequestError(message, field=f"messages.{len(body.messages) - 1}.content")
        fields["continue_final_message"] = True
    fields |= _tools(body) | _output(body) | _thinking(body)
    if isinstance(body, CreateMessage):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences or None,
            "temperature": body.temperature,
            "top_p": body.top_p,
        }
    with in_terms_of(NAMES):
        return chat_request(fields)


def _tools(body: CountTokens) -> dict[str, Any]:
    tools = [_tool(tool, f"tools.{number}") for number, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if choice is None:
        return {"tools": tools or None}
    kind = choice.get("type")
    if kind == "tool":
        name = choice.get("name")
        if not isinstance(name, str) or name not in {tool["function"]["name"] for tool in tools}:
            message = f"`tool_choice.name` must be the name of one of `tools`, got {shown(name)}."
            raise InvalidRequestError(message, field="tool_choice.name", value=name)
        asked: Any = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and kind in _CHOICES:
        asked = _CHOICES[kind]
        if kind == "any" and not tools:
            raise InvalidRequestError("`tool_choice` must not be any where there are no `tools`.", field="tool_choice", value=kind)
    else:
        message = f"`tool_choice.type` must be one of {', '.join(_CHOICES)}, tool, got {shown(kind)}."
        raise InvalidRequestError(message, field="tool_choice.type", value=kind)
    alone = choice.get("disable_parallel_tool_use")
    if alone is not None and not isinstance(alone, bool):
        message = f"`tool_choice.disable_parallel_tool_use` must be true or false, got {shown(alone)}."
        raise InvalidRequestError(message, field="tool_choice.disable_parallel_tool_use", value=alone)
    if not tools:
        return {}
    return {"tools": tools, "tool_choice": asked, "parallel_tool_calls": False if alone else None}


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind, name, schema = tool.get("type"), tool.get("name"), tool.get("input_schema")
    if kind not in (None, "custom"):
        message = f"`{path}.type` must be custom: this server calls no tools of its own, got {shown(kind)}."
        raise InvalidRequestError(message, field=f"{path}.type", value=kind)
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"`{path}.name` must be a name, got {shown(name)}.", field=f"{path}.name", value=name)
    if not isinstance(schema, dict):
        named = f"{path}.input_schema"
        raise InvalidRequestError(f"`{named}` must be an object, got {shown(schema)}.", field=named, value=schema)
    function = {"name": name, "parameters": schema}
    function |= {field: tool[field] for field in ("description", "strict") if tool.get(field) is not None}
    return {"type": "function", "function": function}


def _thinking(body: CountTokens) -> dict[str, Any]:
    if body.thinking is None:
        return {}
    kind = body.thinking.get("type")
    if kind not in _THINKING:
        message = f"`thinking.type` must be one of {', '.join(_THINKING)}, got {shown(kind)}."
        raise InvalidRequestError(message, field="thinking.type", value=kind)
    if kind == "disabled":
        return {"reasoning_effort": "none"}
    fields: dict[str, Any] = {}
    if body.thinking.get("display") == "omitted":
        fields["include_reasoning"] = False
    if kind == "enabled":
        budget = body.thinking.get("budget_tokens")
        most = body.max_tokens if isinstance(body, CreateMessage) else None
        if type(budget) is not int or budget < 1 or (most is not None and budget >= most):
            message = f"`thinking.budget_tokens` must be a whole number of at least 1 and less than `max_tokens`, got {shown(budget)}."
            raise InvalidRequestError(message, field="thinking.budget_tokens", value=budget)
        # The budget is a target, as Anthropic has it; what counts is that chat templates let the model think.
        if not (body.output_config or {}).get("effort"):
            fields["reasoning_effort"] = "medium"
    return fields


def _output(body: CountTokens) -> dict[str, Any]:
    given = body.output_config
    if given is None:
        return {}
    fields: dict[str, Any] = {}
    if given.get("effort") is not None:
        fields["reasoning_effort"] = given["effort"]
    form = given.get("format")
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
            message = "`output_config.format` must be an object with the `type` json_schema and a `schema`."
            raise InvalidRequestError(message, field="output_config.format", value=form)
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": form["schema"], "strict": True}}
    return fields
