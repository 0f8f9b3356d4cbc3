"""How chats are rendered and read on this server: its options, and what the model's chat template tells where they leave it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from xlaserve.server.parsing.detect import reasoning_format, tool_call_format
from xlaserve.server.parsing.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat, ToolFormat
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState


@dataclass(frozen=True, slots=True)
class ChatSetup:
    """What all chat requests share.

    Args:
        template: source of the server's own chat template; None for the model's.
        sources: of all templates that may be used.
        calls: how the model calls tools; None where nobody knows.
        reasoning: how it reasons; None where it does not, or nobody knows.
    """

    template: str | None
    sources: str
    calls: ToolFormat | None
    reasoning: ReasoningFormat | None


def chat_setup(state: ServerState) -> ChatSetup:
    """The setup of a server with a model."""
    return _setup(tuple(state.require_engine().tokenizer.chat_templates.items()), state.settings)


@lru_cache(maxsize=16)
def _setup(templates: tuple[tuple[str, str], ...], settings: ServerSettings) -> ChatSetup:
    own: Mapping[str, str] = dict(templates) if settings.chat_template is None else {"default": settings.chat_template}
    calls, reasoning = settings.tool_call_parser, settings.reasoning_parser
    if calls == "auto":
        calls = tool_call_format(own.values()) or "none"
    if reasoning == "auto":
        reasoning = reasoning_format(own.values()) or "none"
    return ChatSetup(
        template=settings.chat_template,
        sources="\n".join(own.values()),
        calls=None if calls == "none" else TOOL_FORMATS[calls],
        reasoning=None if reasoning == "none" else REASONING_FORMATS[reasoning],
    )
