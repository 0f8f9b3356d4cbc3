"""From a chat request's messages to the prompt: the model's chat template, rendered and tokenized."""

from __future__ import annotations

from dataclasses import dataclass

from xlaserve.errors import InvalidRequestError
from xlaserve.server.messages import conversation
from xlaserve.server.prompts import encode, truncation_of
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import ServerState

# What the renderer passes itself.
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the model reads, as text and as the tokens of that text."""

    text: str
    token_ids: list[int]


async def chat_prompt(body: ChatCompletionRequest, state: ServerState, *, bounded: bool = True) -> ChatPrompt:
    """The prompt of a chat request; nothing is submitted.

    Args:
        body: the parsed body.
        state: of the server.
        bounded: whether it must fit the model; what is only counted need not.

    Raises:
        InvalidRequestError: the messages or template options are malformed, or the template refuses them.
        ContextLengthError: the prompt leaves no room for a token.
    """
    engine = state.require_engine()
    continue_final = body.continue_final_message is True
    if continue_final and body.add_generation_prompt:
        raise InvalidRequestError(
            "`continue_final_message` and `add_generation_prompt` exclude each other: set one of them to false.",
            field="continue_final_message",
        )
    template_kwargs = body.chat_template_kwargs or {}
    for name in _RESERVED:
        if name in template_kwargs:
            raise InvalidRequestError(
                f"`chat_template_kwargs.{name}` is not allowed: use the request's own field.", field=f"chat_template_kwargs.{name}"
            )
    messages = conversation(body.messages, engine.tokenizer.chat_template)
    rendered = ""

    def render() -> str:
        nonlocal rendered
        rendered = engine.tokenizer.render_chat(
            messages,
            add_generation_prompt=not continue_final if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continue_final,
            template_kwargs=template_kwargs,
        )
        return rendered

    size = sum(len(message["content"]) for message in messages)
    # Chat templates write the special tokens themselves.
    ids = await encode(
        engine,
        render,
        size,
        add_special_tokens=body.add_special_tokens is True,
        field="messages",
        truncation=truncation_of(body, engine, body.max_completion_tokens or body.max_tokens or 1),
        bounded=bounded,
    )
    return ChatPrompt(rendered, ids)
