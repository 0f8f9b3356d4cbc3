"""What endpoints answer with, as models for openapi.json. Answers are built as plain JSON, without these; tests compare the two."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong: a sentence, OpenAI's type, the field at fault, and a stable word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The one shape of all errors."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens of a request as a whole."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class CompletionLogprobs(BaseModel):
    """Per token; null where nothing comes before a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    prompt_logprobs: list[dict[str, Any] | None] | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(BaseModel):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[dict[str, Any]]
    usage: Usage


class ResponseObject(BaseModel):
    """The answer of /v1/responses, and of what asks for a response later."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    completed_at: int | None
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    previous_response_id: str | None
    usage: dict[str, Any] | None


class ItemList(BaseModel):
    """The answer of /v1/responses/{response_id}/input_items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class AnthropicErrorDetail(BaseModel):
    """What is wrong: Anthropic's type, and a sentence."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The shape of all errors under /v1/messages."""

    type: Literal["error"]
    error: AnthropicErrorDetail


class Message(BaseModel):
    """The answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: dict[str, Any]


class MessageTokens(BaseModel):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class Model(BaseModel):
    """A served model, with OpenAI's and vLLM's fields."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    permission: list[dict[str, Any]]


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizerInfo(BaseModel):
    """The answer of /tokenizer_info."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocab_size: int
    model_max_length: int


class Text(BaseModel):
    """The answer of /detokenize."""

    prompt: str


class Version(BaseModel):
    """The answer of /version."""

    version: str


class Load(BaseModel):
    """The answer of /load."""

    server_load: int


class ModelInfo(BaseModel):
    """The answer of /model_info."""

    model_path: str
    tokenizer_path: str
    is_generation: bool


class Readiness(BaseModel):
    """The answer of /ready."""

    status: Literal["loading", "ready", "dead", "stopping"]
    seconds: float
    progress: list[str]
