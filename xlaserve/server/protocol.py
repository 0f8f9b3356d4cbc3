"""The request bodies of the OpenAI API that this server understands, as pydantic models; field meanings follow OpenAI and vLLM.

Types are strict ("16" is not a number), null means the default, and ranges are left to `SamplingParams`, which checks them for
every way into the engine. Fields that are not declared here are kept, and judged by `xlaserve.server.unsupported`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema, field_validator

from xlaserve.sampling.params import MAX_BAD_WORDS, MAX_LOGPROBS, MAX_N, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS

MAX_PROMPTS = 1024
MAX_STREAM_INTERVAL = 1024
MAX_TOOLS = 512
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Of reasoning; which of them make a difference is up to the model."""

COMPLETION_MAX_TOKENS = 16
"""What a completion request that does not say gets."""

_EXACT_FLOAT = 2.0**53


def _whole_number(value: object) -> object:
    # JSON has one kind of number: some clients write 16.0 for 16.
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOAT:
        return int(value)
    return value


def _false_is_none(value: object) -> object:
    # What asks for nothing with chat completions does so here.
    return None if value is False else value


def _stop(value: object) -> object:
    if value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    raise ValueError("must be a string or an array of strings")


def _prompt(value: object) -> object:
    kinds = {type(item) for item in value} if isinstance(value, list) else set[type]()
    if isinstance(value, str) or (kinds and (kinds == {str} or kinds == {int} or kinds == {list})):
        return value
    if value is None or value == []:
        raise ValueError("must not be empty")
    raise ValueError("must be a string, an array of strings, an array of token ids, or an array of arrays of token ids")


def _not_empty(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not value:
        raise ValueError("must not be empty")
    return value


def _effort(value: str | None) -> str | None:
    if value is not None and value not in EFFORTS:
        raise ValueError(f"must be one of {', '.join(EFFORTS)}")
    return value


def _budget(value: int | None) -> int | None:
    if value is not None and value < -1:
        raise ValueError("must be at least 0, or -1 for no limit")
    return value


def _side(value: object) -> object:
    if value in (None, "left", "right"):
        return value
    raise ValueError('must be "left" or "right"')


def _name(value: str | None) -> str | None:
    if value is not None and not _REQUEST_ID.fullmatch(value):
        raise ValueError("must hold 1 to 128 letters, digits and characters of ._:@+=/-")
    return value


def _or_null(schema: dict[str, Any]) -> WithJsonSchema:
    """For openapi.json: what a field may be besides null. `SamplingParams` is what checks ranges."""
    return WithJsonSchema({"anyOf": [schema, {"type": "null"}]})


def _whole(low: int, high: int | None = None) -> WithJsonSchema:
    return _or_null({"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high}))


def _number(low: float, high: float) -> WithJsonSchema:
    return _or_null({"type": "number", "minimum": low, "maximum": high})


_REQUEST_ID = re.compile(r"[A-Za-z0-9._:@+=/-]{1,128}")
_TOKEN_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT, "minItems": 1}

TokenIds = Annotated[list[int], WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}})]
_BIAS = {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,18}$"}, "additionalProperties": {"type": "number"}}
_PART = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}
_MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
        },
    },
}

_FUNCTION_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"}
_TOOLS: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _FUNCTION_NAME, "description": {"type": "string"}, "parameters": {"type": "object"}},
            },
        },
    },
}
_NAMED_TOOL = {"type": "object", "required": ["name"], "properties": {"name": _FUNCTION_NAME}}
_TOOL_CHOICE: dict[str, Any] = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {"type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": _NAMED_TOOL}},
    ]
}

Integer = Annotated[int, BeforeValidator(_whole_number)]
Logprobs = Annotated[Integer | None, BeforeValidator(_false_is_none), _whole(0, MAX_LOGPROBS)]
Side = Annotated[Any, AfterValidator(_side), _or_null({"enum": ["left", "right"]})]
Stop = Annotated[
    Any, AfterValidator(_stop), WithJsonSchema({"anyOf": [_TEXT, _TEXTS | {"minItems": 0, "maxItems": MAX_STOP_STRINGS}, {"type": "null"}]})
]
Prompt = Annotated[
    Any,
    AfterValidator(_prompt),
    WithJsonSchema({"anyOf": [_TEXT, _TEXTS, _TOKEN_IDS, {"type": "array", "items": _TOKEN_IDS, "minItems": 1}]}),
]


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the usage; `continuous_usage_stats` puts the usage so far in every chunk."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(BaseModel):
    """What both completion endpoints share.

    `truncate_prompt_tokens` keeps so many tokens of a prompt, by default its last ones, and -1 as many as fit. `return_token_ids` gives
    the ids of prompt and output; `return_tokens_as_token_ids` writes "token_id:7" for the text of a token in log probabilities. A stream
    sends a choice's tokens `stream_interval` at a time. `spaces_between_special_tokens` changes nothing: none are ever put there.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Integer | None, _whole(1, MAX_N)] = None
    max_tokens: Annotated[Integer | None, _whole(0)] = None
    min_tokens: Annotated[Integer | None, _whole(0)] = None
    temperature: Annotated[float | None, _number(0, 2)] = None
    top_p: Annotated[float | None, _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 1})] = None
    top_k: Annotated[Integer | None, _whole(-1)] = None
    min_p: Annotated[float | None, _number(0, 1)] = None
    presence_penalty: Annotated[float | None, _number(-2, 2)] = None
    frequency_penalty: Annotated[float | None, _number(-2, 2)] = None
    repetition_penalty: Annotated[float | None, _number(0.01, 100)] = None
    logit_bias: Annotated[dict[str, float] | None, _or_null(_BIAS)] = None
    allowed_token_ids: Annotated[list[Integer] | None, _or_null(_TOKEN_IDS)] = None
    bad_words: Annotated[list[str] | None, _or_null(_TEXTS | {"minItems": 0, "maxItems": MAX_BAD_WORDS})] = None
    prompt_logprobs: Logprobs = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    seed: Annotated[Integer | None, _whole(-(2**63), 2**63 - 1)] = None
    stop: Stop = None
    stop_token_ids: Annotated[list[Integer] | None, _or_null(_TOKEN_IDS | {"minItems": 0, "maxItems": MAX_STOP_TOKEN_IDS})] = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[Integer | None, _whole(-1)] = None
    truncation_side: Side = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream_interval: Annotated[Integer | None, _whole(1, MAX_STREAM_INTERVAL)] = None
    request_id: Annotated[str | None, AfterValidator(_name), _or_null({"type": "string", "pattern": f"^{_REQUEST_ID.pattern}$"})] = None
    priority: Integer | None = None
    cache_salt: Annotated[str | None, _or_null(_TEXT)] = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("must be left out unless `stream` is true")
        return value

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_for_streams(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise ValueError("must be left out where `stream` is true")
        return value


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. `echo` puts the prompt before the text; token-id prompts are echoed as text.

    `logprobs` is a number here, of the most likely tokens to give besides the generated ones. `max_tokens` may be 0 with `echo`: nothing
    is generated then. `best_of` completions are generated, and the `n` with the highest log probability per token given.
    """

    prompt: Prompt
    echo: bool | None = None
    best_of: Annotated[Integer | None, _whole(1, MAX_N)] = None
    logprobs: Logprobs = None


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions. `max_completion_tokens` takes precedence over `max_tokens`; `top_logprobs` needs `logprobs`.

    `tools` are functions that the model may call, as far as `tool_choice` and `parallel_tool_calls` let it. `reasoning_effort` and
    `documents` are read by chat templates; `include_reasoning: false` leaves reasoning out of the answer, and `thinking_token_budget` ends
    it after so many tokens.
    """

    messages: Annotated[list[dict[str, Any]], AfterValidator(_not_empty), WithJsonSchema(_MESSAGES)]
    max_completion_tokens: Annotated[Integer | None, _whole(1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer | None, _whole(0, MAX_LOGPROBS)] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    tools: Annotated[list[dict[str, Any]] | None, _or_null(_TOOLS)] = None
    tool_choice: Annotated[Any, _or_null(_TOOL_CHOICE)] = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str | None, AfterValidator(_effort), _or_null({"enum": list(EFFORTS)})] = None
    include_reasoning: bool | None = None
    thinking_token_budget: Annotated[Integer | None, AfterValidator(_budget), _whole(-1)] = None
