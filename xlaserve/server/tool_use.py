"""The tools of a chat request: checked, and what the request wants done with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.structured import StructuredOutput
from xlaserve.server.errors import shown
from xlaserve.server.parsing.formats import FORCED_CALLS, ToolFormat, forced_call
from xlaserve.server.parsing.tools import ToolSchemas
from xlaserve.server.protocol import MAX_TOOLS, ChatCompletionRequest

MAX_CALLS = 64
"""Most calls that `tool_choice: "required"` allows at once."""
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Args:
        tools: as chat templates take them.
        schemas: of the tools' arguments.
        choice: whether calls are allowed or required.
        name: the one tool that must be called; None leaves the choice to the model.
        parallel: whether there may be several calls.
    """

    tools: list[dict[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]]
    choice: Literal["auto", "required"]
    name: str | None
    parallel: bool

    @property
    def known(self) -> ToolSchemas:
        """The tools as parsers want them."""
        return ToolSchemas(self.schemas)

    @property
    def forced(self) -> ToolFormat | None:
        """How calls are written that the request requires; None where it leaves them to the model."""
        if self.name is not None:
            return forced_call(self.name)
        return FORCED_CALLS if self.choice == "required" else None

    def structured(self, after: str | None) -> StructuredOutput | None:
        """The form that required calls must have; None where none is required.

        Args:
            after: what the model writes before.

        Raises:
            InvalidRequestError: a schema is too large or nested too deeply.
        """
        if self.name is not None:
            return StructuredOutput(json_schema=_arguments(self.schemas[self.name]), whitespace="none", after=after, field="tools")
        if self.choice != "required":
            return None
        calls: list[dict[str, Any]] = []
        definitions: dict[str, Any] = {}
        for number, (name, schema) in enumerate(self.schemas.items()):
            place = f"tool{number}"
            definitions[place] = _moved(_arguments(schema), f"#/$defs/{place}")
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": name}, "parameters": {"$ref": f"#/$defs/{place}"}},
                    "required": ["name", "parameters"],
                    "additionalProperties": False,
                }
            )
        schema = {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_CALLS if self.parallel else 1,
            "items": {"anyOf": calls},
            "$defs": definitions,
        }
        return StructuredOutput(json_schema=schema, whitespace="none", after=after, field="tools")


def tool_use(body: ChatCompletionRequest) -> ToolUse | None:
    """What a request says of tools; None where it has none, or forbids to call them.

    Raises:
        InvalidRequestError: a tool or the choice is malformed; `field` is the path to it.
    """
    tools = body.tools or []
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"`tools` may hold at most {MAX_TOOLS} tools, got {len(tools)}.", field="tools", value=len(tools))
    schemas: dict[str, Mapping[str, Any]] = {}
    for number, tool in enumerate(tools):
        name, parameters = _function(tool, f"tools.{number}")
        if name in schemas:
            field = f"tools.{number}.function.name"
            raise InvalidRequestError(f"`{field}` is that of an earlier tool, {name!r}.", field=field, value=name)
        schemas[name] = parameters
    choice, name = _choice(body.tool_choice, schemas)
    if not tools or choice == "none":
        return None
    return ToolUse(tools, schemas, "auto" if choice == "auto" else "required", name, body.parallel_tool_calls is not False)


def _function(tool: Mapping[str, Any], path: str) -> tuple[str, Mapping[str, Any]]:
    if tool.get("type") != "function":
        kind = tool.get("type")
        raise InvalidRequestError(f'`{path}.type` must be "function", got {shown(kind)}.', field=f"{path}.type", value=kind)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f"`{path}.function` must be an object, got {shown(function)}.", field=f"{path}.function", value=function)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"`{path}.function.name` must hold 1 to 128 letters, digits and characters of _.:/-, got {shown(name)}.",
            field=f"{path}.function.name",
            value=name,
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise InvalidRequestError(
            f"`{path}.function.description` must be a string, got {shown(description)}.", field=f"{path}.function.description"
        )
    parameters = function.get("parameters")
    if parameters is None:
        return name, {}
    where = f"{path}.function.parameters"
    if not isinstance(parameters, Mapping):
        raise InvalidRequestError(f"`{where}` must be a JSON schema, got {shown(parameters)}.", field=where, value=parameters)
    for key, kind, words in (("properties", dict, "an object"), ("required", list, "an array")):
        if not isinstance(parameters.get(key, kind()), kind):
            raise InvalidRequestError(f"`{where}.{key}` must be {words}, got {shown(parameters[key])}.", field=f"{where}.{key}")
    if parameters.get("type", "object") != "object":
        kind = parameters["type"]
        raise InvalidRequestError(f'`{where}.type` must be "object", got {shown(kind)}.', field=f"{where}.type", value=kind)
    return name, parameters


def _choice(choice: object, schemas: Mapping[str, Any]) -> tuple[str, str | None]:
    if choice is None:
        return "auto", None
    if isinstance(choice, str) and choice in _CHOICES:
        if choice == "required" and not schemas:
            raise InvalidRequestError('`tool_choice` can be "required" only where there are `tools`.', field="tool_choice", value=choice)
        return choice, None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise InvalidRequestError(
            '`tool_choice` must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}, '
            f"got {shown(choice)}.",
            field="tool_choice",
            value=choice,
        )
    if name not in schemas:
        raise InvalidRequestError(f"`tool_choice` names {shown(name)}, which is not among `tools`.", field="tool_choice", value=name)
    return "required", name


def _arguments(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema, which is always of an object."""
    return {"type": "object", **schema}


def _moved(schema: Any, place: str) -> Any:
    """A schema that has become part of another one: references to its own root lead to where it stands now."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:] if key == "$ref" and isinstance(value, str) and value.startswith("#") else _moved(value, place)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    return schema
