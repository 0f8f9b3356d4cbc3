"""The body of POST /v1/responses as a pydantic model. Fields that are not declared are kept, and judged by `responses.conversion`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema, field_validator

from xlaserve.server.errors import shown
from xlaserve.server.protocol import Integer

MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
INCLUDABLE = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
LOGPROBS = "message.output_text.logprobs"


def _input(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        if value:
            return value
        raise ValueError("must not be empty")
    raise ValueError("must be a string or an array of items")


def _choice(value: object) -> object:
    if value is None or isinstance(value, str | dict):
        return value
    raise ValueError("must be a string or an object")


def _one_of(*values: str) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise ValueError(f"must be one of {', '.join(values)}")
        return value

    return AfterValidator(check)


Verbosity = Annotated[str | None, _one_of("low", "medium", "high")]
Truncation = Annotated[str | None, _one_of("auto", "disabled")]
Summary = Annotated[str | None, _one_of("auto", "concise", "detailed")]
_ITEMS: dict[str, Any] = {"type": "array", "items": {"type": "object"}, "minItems": 1}
Input = Annotated[Any, AfterValidator(_input), WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _ITEMS]})]
ToolChoice = Annotated[Any, AfterValidator(_choice), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]})]


class TextOptions(BaseModel):
    """`format` is what the answer must look like; `verbosity` is a hint that this server does not take."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: dict[str, Any] | None = None
    verbosity: Verbosity = None


class ReasoningOptions(BaseModel):
    """`effort` goes to the chat template. No summaries are made: the reasoning itself is in the answer."""

    model_config = ConfigDict(extra="allow", strict=True)

    effort: str | None = None
    summary: Summary = None
    generate_summary: Summary = None


class CreateResponse(BaseModel):
    """POST /v1/responses. `input` is one user message or a list of items; `previous_response_id` puts an earlier conversation before it.

    `truncation`, where it is "auto", leaves out the oldest turns of a conversation that is too long.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Integer | None = None
    max_tool_calls: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Integer | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: Truncation = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("include")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if name not in INCLUDABLE:
                raise ValueError(f"must hold some of {', '.join(INCLUDABLE)}, not {shown(name)}")
        return value

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        given = value or {}
        if len(given) > MAX_METADATA or any(len(key) > MAX_METADATA_KEY or len(text) > MAX_METADATA_VALUE for key, text in given.items()):
            raise ValueError(
                f"must hold at most {MAX_METADATA} pairs, of keys up to {MAX_METADATA_KEY} and values up to {MAX_METADATA_VALUE} characters"
            )
        return value
