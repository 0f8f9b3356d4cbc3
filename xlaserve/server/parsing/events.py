"""What an answer's text is made of, in the order in which the model wrote it; the pieces of a stream put together are the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(slots=True)
class Reasoning:
    """Text that the model wrote to itself."""

    text: str


@dataclass(slots=True)
class ToolCallStart:
    """A tool is called; its arguments follow.

    Args:
        index: of the call among those of its choice, from 0.
        id: by which the client's answer will name the call.
        name: of the tool.
    """

    index: int
    id: str
    name: str


@dataclass(slots=True)
class ToolCallArguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


OutputEvent: TypeAlias = Content | Reasoning | ToolCallStart | ToolCallArguments
