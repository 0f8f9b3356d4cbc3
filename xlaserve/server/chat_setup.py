"""How chats are rendered and read on this server: its options, and what the model's chat template tells where they leave it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from xlaserve.server.parsing.detect import reasoning_format, tool_call_format
from xlaserve.server.parsing.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat, ToolFormat
from xlaserve.server.settings import ChatSettings
from xlaserve.server.state import ServerState


@dataclass(frozen=True, slots=True)
class ChatSetup:
    """What all chat requests share.

    Args:
        template: source of the server's own chat template; None for the model's.
        sources: of all templates that may be used.
        calls: how the model calls tools; None where nobody knows.
        writes_tools: templates know nothing of tools, so that messages must tell of them.
        reasoning: how it reasons; None where it does not, or nobody knows.
    """

    template: str | None
    sources: str
    calls: ToolFormat | None
    writes_tools: bool
    reasoning: ReasoningFormat | None


def chat_setup(state: ServerState) -> ChatSetup:
    """The setup of a server with a model."""
    return _setup(tuple(state.require_engine().tokenizer.chat_templates.items()), state.settings.chat)


@lru_cache(maxsize=16)
def _setup(templates: tuple[tuple[str, str], ...], settings: ChatSettings) -> ChatSetup:
    own: Mapping[str, str] = dict(templates) if settings.template is None else {"default": settings.template}
    calls, reasoning = settings.tool_call_parser, settings.reasoning_parser
    writes_tools = calls == "auto" and not any("tools" in source for source in own.values())
    if calls == "auto":
        calls = "hermes" if writes_tools else tool_call_format(own.values()) or "none"
    if reasoning == "auto":
        reasoning = reasoning_format(own.values()) or "none"
    return ChatSetup(
        template=settings.template,
        sources="\n".join(own.values()),
        writes_tools=writes_tools,
        calls=None if calls == "none" else TOOL_FORMATS[calls],
        reasoning=None if reasoning == "none" else REASONING_FORMATS[reasoning],
    )
