"""How the text of a chat request's choices is read: which formats, and what of it the client is to see."""

from __future__ import annotations

import secrets
import string
import uuid
from dataclasses import dataclass, replace

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.structured import StructuredOutput
from xlaserve.server.chat_prompt import ChatPrompt
from xlaserve.server.chat_setup import ChatSetup
from xlaserve.server.engine import TextCodec
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart
from xlaserve.server.parsing.formats import ReasoningFormat, ToolFormat
from xlaserve.server.parsing.harmony import FINAL
from xlaserve.server.parsing.parser import OutputParser
from xlaserve.server.parsing.tools import ToolSchemas
from xlaserve.server.protocol import ChatCompletionRequest


@dataclass(frozen=True, slots=True)
class Reading:
    """How the text of one request's choices is read.

    Args:
        calls: how the model calls tools; None where it must not.
        reasoning: how it reasons; None where nobody knows.
        tools: what may be called.
        opened: the answer begins within reasoning.
        special: special tokens that the text holds and that are left out.
        include_reasoning: the client wants to see it.
        parallel: there may be several calls; else all but the first are left out.
    """

    calls: ToolFormat | None
    reasoning: ReasoningFormat | None
    tools: ToolSchemas
    opened: bool
    special: tuple[str, ...]
    include_reasoning: bool
    parallel: bool

    @property
    def answer_after(self) -> str | None:
        """The text after which the answer proper begins; None where it begins at once."""
        if self.reasoning is not None and self.reasoning.channels:
            return FINAL
        return self.reasoning.closes[0] if self.reasoning is not None and self.opened else None

    def within_budget(self, structured: StructuredOutput | None, tokens: int) -> StructuredOutput | None:
        """A form of output that ends the reasoning before it after some tokens.

        Args:
            structured: the form of the answer; None for any.
            tokens: most that the reasoning may take.

        Raises:
            InvalidRequestError: reasoning in this format cannot be ended so.
        """
        if self.reasoning is None:
            return structured
        if self.reasoning.channels:
            raise InvalidRequestError(
                "`thinking_token_budget` is not supported for this model, whose reasoning ends with a message.",
                field="thinking_token_budget",
                value=tokens,
            )
        if structured is not None:
            return structured if structured.after is None else replace(structured, after_tokens=tokens)
        opening = None if self.opened else self.reasoning.opens[0]
        return StructuredOutput(
            regex="(?s:.*)", after=self.reasoning.closes[0], after_tokens=tokens, after_opening=opening, field="thinking_token_budget"
        )

    def parser(self) -> OutputParser:
        """A parser for one choice."""
        short = self.calls is not None and self.calls.short_ids
        return OutputParser(
            self.calls,
            self.reasoning,
            self.tools,
            opened=self.opened,
            special=self.special,
            new_id=_short_id if short else _call_id,
        )

    def wants(self, event: OutputEvent) -> bool:
        """Whether the client is to see an event."""
        match event:
            case Reasoning():
                return self.include_reasoning
            case ToolCallStart() | ToolCallArguments():
                return self.parallel or event.index == 0
            case Content():
                return True


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _short_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def reading_of(body: ChatCompletionRequest, prompt: ChatPrompt, setup: ChatSetup, tokenizer: TextCodec) -> Reading | None:
    """How the answer to a prompt is read; None where it is nothing but content.

    Args:
        body: the parsed body.
        prompt: what the model reads.
        setup: of the server.
        tokenizer: knows which markers are special tokens.
    """
    tools, reasoning = prompt.tools, setup.reasoning
    calls = None if tools is None else tools.forced or setup.calls
    if calls is None and reasoning is None:
        return None
    opened = reasoning is not None and reasoning.opened_by(prompt.text)
    if tools is not None and tools.forced is not None and not opened:
        # The grammar leaves no place for it.
        reasoning = None
    special: tuple[str, ...] = ()
    markers = (calls.markers if calls else frozenset[str]()) | (reasoning.markers if reasoning else frozenset[str]())
    if body.skip_special_tokens is not False and not markers.isdisjoint(tokenizer.special_tokens):
        special = tokenizer.special_tokens
    return Reading(
        calls=calls,
        reasoning=reasoning,
        tools=ToolSchemas({}) if tools is None else tools.known,
        opened=opened,
        special=special,
        include_reasoning=body.include_reasoning is not False,
        parallel=tools is None or tools.parallel,
    )
