"""The bodies of POST /v1/messages and /v1/messages/count_tokens as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema

from xlaserve.server.protocol import Integer


def _not_empty(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not value:
        raise ValueError("must not be empty")
    return value


def _system(value: object) -> object:
    if value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        return value
    raise ValueError("must be a string or an array of text blocks")


_BLOCKS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"anyOf": [{"type": "string"}, _BLOCKS]}},
}
_MESSAGES: dict[str, Any] = {"type": "array", "items": _MESSAGE, "minItems": 1}
System = Annotated[Any, AfterValidator(_system), WithJsonSchema({"anyOf": [{"type": "string"}, _BLOCKS, {"type": "null"}]})]


class CountTokens(BaseModel):
    """POST /v1/messages/count_tokens: what makes the prompt."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    messages: Annotated[list[dict[str, Any]], AfterValidator(_not_empty), WithJsonSchema(_MESSAGES)]
    system: System = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class CreateMessage(CountTokens):
    """POST /v1/messages. A conversation whose last message is the assistant's is continued in the middle of it."""

    max_tokens: Integer
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    metadata: dict[str, Any] | None = None
