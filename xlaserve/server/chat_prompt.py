"""From a chat request's messages to the prompt: the chat template, rendered and tokenized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.chat_setup import chat_setup
from xlaserve.server.messages import conversation, text_size
from xlaserve.server.prompts import INLINE_CHARS, encode, truncation_of
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import ServerState
from xlaserve.server.tool_prompt import written_out
from xlaserve.server.tool_use import ToolUse, tool_use

# What the renderer passes itself.
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the model reads, as text and as the tokens of that text, and the tools that it may call."""

    text: str
    token_ids: list[int]
    tools: ToolUse | None


async def chat_prompt(body: ChatCompletionRequest, state: ServerState, *, bounded: bool = True) -> ChatPrompt:
    """The prompt of a chat request; nothing is submitted.

    Args:
        body: the parsed body.
        state: of the server.
        bounded: whether it must fit the model; what is only counted need not.

    Raises:
        InvalidRequestError: messages, tools or template options are malformed, or the template refuses them.
        ContextLengthError: the prompt leaves no room for a token.
    """
    engine, setup = state.require_engine(), chat_setup(state)
    continue_final = body.continue_final_message is True
    if continue_final and body.add_generation_prompt:
        raise InvalidRequestError(
            "`continue_final_message` and `add_generation_prompt` exclude each other: set one of them to false.",
            field="continue_final_message",
        )
    if body.chat_template is not None and not state.settings.chat.trust_request_template:
        raise InvalidRequestError(
            "`chat_template` is not allowed here, since templates are programs: the server must be started with "
            "--trust-request-chat-template.",
            field="chat_template",
        )
    template = body.chat_template or setup.template
    tools = tool_use(body)
    if tools is not None and tools.forced is None and setup.calls is None and state.settings.chat.tool_call_parser == "auto":
        raise InvalidRequestError(
            "`tools` cannot be used: the model's chat template does not tell how it calls them. Start the server with --tool-call-parser.",
            field="tools",
        )
    messages = conversation(body.messages, template or setup.sources, state.settings.chat.content_format)
    listed = None if tools is None else tools.tools
    if setup.writes_tools and body.chat_template is None:
        messages, listed = written_out(messages, listed), None
    variables = _variables(body)
    rendered = ""

    def render() -> str:
        nonlocal rendered
        rendered = engine.tokenizer.render_chat(
            messages,
            tools=listed,
            add_generation_prompt=not continue_final if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continue_final,
            template_kwargs=variables,
            chat_template=template,
        )
        return rendered

    # A client's own template may take its time.
    size = text_size(messages) if body.chat_template is None and tools is None else INLINE_CHARS + 1
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
    return ChatPrompt(rendered, ids, tools)


def _variables(body: ChatCompletionRequest) -> Mapping[str, Any]:
    """What the template can read besides the conversation."""
    given = body.chat_template_kwargs or {}
    for name in _RESERVED:
        if name in given:
            raise InvalidRequestError(
                f"`chat_template_kwargs.{name}` is not allowed: use the request's own field.", field=f"chat_template_kwargs.{name}"
            )
    variables: dict[str, Any] = {}
    if body.documents:
        variables["documents"] = body.documents
    if body.reasoning_effort is not None:
        # Templates that only know whether to think at all have one of two names for it.
        thinks = body.reasoning_effort != "none"
        variables |= {"reasoning_effort": body.reasoning_effort, "enable_thinking": thinks, "thinking": thinks}
    return {**variables, **given}
