"""One chat request at work, whichever API it came through: rendered, tokenized, submitted, and its text read as events.

Endpoints translate `ChatDelta`s into their own words: chat completions, responses and messages all stand on this.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request

from xlaserve.engine.outputs import Logprob
from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.server.chat_prompt import chat_prompt
from xlaserve.server.chat_reading import Reading, reading_of
from xlaserve.server.chat_setup import chat_setup
from xlaserve.server.generation import Delta, Generation
from xlaserve.server.pacing import check_interval, paced
from xlaserve.server.parameters import generation_params
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.structured import checked_structure
from xlaserve.server.unsupported import refuse_unsupported


@dataclass(slots=True)
class ChatDelta:
    """What is new in one choice.

    Args:
        choice: its index.
        events: what the new text means; may be empty.
        token_ids: new tokens, those of markers included.
        logprobs: of the same tokens; empty where not asked for.
        finish_reason: None while the choice goes on; "stop", "length", "tool_calls" or "abort" with its last delta.
        stop_reason: the stop string or token id that ended it, None for the model's own end.
    """

    choice: int
    events: list[OutputEvent]
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(slots=True)
class ToolCall:
    """A complete call; `arguments` is JSON text, as far as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ChatChoice:
    """A complete choice; see `ChatDelta` for the fields that they share."""

    index: int
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[dict[int, Logprob]] = field(default_factory=list[dict[int, Logprob]])
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatRun:
    """A submitted chat request; consumed once, through `deltas` or `collect`.

    Args:
        request_id: unique among requests.
        generation: submitted, not consumed.
        params: what it was submitted with.
        prompt_token_ids: what the model reads.
        reading: how its text is read; None where it is nothing but content.
        stream_interval: tokens of a choice that a delta is made of; None for one by one.
    """

    def __init__(
        self,
        request_id: str,
        generation: Generation,
        params: GenerationParams,
        prompt_token_ids: list[int],
        *,
        reading: Reading | None = None,
        stream_interval: int | None = None,
    ) -> None:
        self.request_id = request_id
        self.generation = generation
        self.params = params
        self.prompt_token_ids = prompt_token_ids
        self.prompt_tokens = len(prompt_token_ids)
        self._stream_interval = stream_interval
        self.choice_count = len(generation.choices)
        self._reading = reading
        self._parsers = None if reading is None else [reading.parser() for _ in range(self.choice_count)]
        self._reasoning_tokens = [0] * self.choice_count
        self._called = [False] * self.choice_count

    async def deltas(self) -> AsyncGenerator[list[ChatDelta]]:
        """What is new, as the engine produces it; ends when every choice has ended.

        Raises:
            ShuttingDownError, GenerationFailedError, EngineDeadError: the engine ended a choice early.
        """
        async with aclosing(self.steps()) as steps:
            async for deltas in steps:
                yield [self.read(delta) for delta in deltas]

    @property
    def plain(self) -> bool:
        """Whether the text is nothing but content, so that it need not be read."""
        return self._parsers is None

    def steps(self) -> AsyncGenerator[list[Delta]]:
        """What `deltas` gives before it is read, for who passes plain text on without a detour; see `read`."""
        steps = self.generation.deltas()
        return steps if self._stream_interval in (None, 1) else paced(steps, self._stream_interval)

    async def collect(self) -> list[ChatChoice]:
        """All choices, complete."""
        choices = [ChatChoice(index) for index in range(self.choice_count)]
        contents: list[list[str]] = [[] for _ in choices]
        reasonings: list[list[str]] = [[] for _ in choices]
        arguments: list[list[list[str]]] = [[] for _ in choices]
        async with aclosing(self.deltas()) as steps:
            async for deltas in steps:
                for delta in deltas:
                    choice = choices[delta.choice]
                    for event in delta.events:
                        match event:
                            case Content(text):
                                contents[delta.choice].append(text)
                            case Reasoning(text):
                                reasonings[delta.choice].append(text)
                            case ToolCallStart(_, call_id, name):
                                choice.tool_calls.append(ToolCall(call_id, name))
                                arguments[delta.choice].append([])
                            case ToolCallArguments(index, text):
                                arguments[delta.choice][index].append(text)
                    choice.token_ids += delta.token_ids
                    choice.logprobs += delta.logprobs
                    if delta.finish_reason is not None:
                        choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        for choice in choices:
            choice.content, choice.reasoning = "".join(contents[choice.index]), "".join(reasonings[choice.index])
            for call, pieces in zip(choice.tool_calls, arguments[choice.index], strict=True):
                call.arguments = "".join(pieces)
        return choices

    def abort(self) -> None:
        """Gives up what still runs and frees its KV blocks; harmless when all has ended."""
        self.generation.abort()

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object for the whole request so far."""
        return self._with_reasoning(self.generation.usage(), sum(self._reasoning_tokens))

    def choice_usage(self, index: int) -> dict[str, Any]:
        """The same for one choice so far."""
        return self._with_reasoning(self.generation.choice_usage(index), self._reasoning_tokens[index])

    def _with_reasoning(self, usage: dict[str, Any], tokens: int) -> dict[str, Any]:
        if self._reading is not None and self._reading.reasoning is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": tokens}
        return usage

    def read(self, delta: Delta) -> ChatDelta:
        """What new text of a choice means; every piece must be read, in order."""
        if self._parsers is None:
            events: list[OutputEvent] = [Content(delta.text)] if delta.text else []
            return ChatDelta(delta.choice, events, delta.token_ids, delta.logprobs, delta.finish_reason, delta.stop_reason)
        parser, reason = self._parsers[delta.choice], delta.finish_reason
        events = parser.feed(delta.text)
        if parser.in_reasoning or any(isinstance(event, Reasoning) for event in events):
            self._reasoning_tokens[delta.choice] += len(delta.token_ids)
        if reason is not None:
            events += parser.finish()
        assert self._reading is not None
        events = [event for event in events if self._reading.wants(event)]
        self._called[delta.choice] |= any(isinstance(event, ToolCallStart) for event in events)
        if reason == "stop" and self._called[delta.choice]:
            reason = "tool_calls"
        return ChatDelta(delta.choice, events, delta.token_ids, delta.logprobs, reason, delta.stop_reason)


async def start_chat(request: Request, body: ChatCompletionRequest, *, request_id: str | None = None) -> ChatRun:
    """Checks a chat request, makes its prompt, and submits it.

    Args:
        request: names the application; its body has been read.
        body: what is asked for; `stream` says nothing here.
        request_id: unique; None makes one.

    Raises:
        InvalidRequestError: what the client got wrong.
        ModelNotFoundError, NotReadyError, OverloadedError, ShuttingDownError, EngineDeadError: it cannot be served, or not now.
    """
    state = state_of(request)
    engine = state.require_engine()
    refuse_unsupported(body, chat=True)
    check_interval(body.stream_interval)
    state.check_model(body.model)
    setup = chat_setup(state)
    prompt = await chat_prompt(body, state)
    reading = reading_of(body, prompt, setup, engine.tokenizer)
    after = None if reading is None else reading.answer_after
    calls = None if prompt.tools is None else prompt.tools.structured(after)
    if calls is not None and body.use_beam_search:
        raise InvalidRequestError(
            "`tool_choice` cannot require a call together with `use_beam_search`.", field="tool_choice", value=body.tool_choice
        )
    structured = await checked_structure(body, engine, after=after, calls=calls)
    budget = body.thinking_token_budget
    if reading is not None and budget is not None and budget != -1:
        if (ending := reading.within_budget(structured, budget)) is not None:
            await engine.check(ending)
        structured = ending
    params = generation_params(body, engine, len(prompt.token_ids), "messages", structured=structured)
    if reading is not None and reading.special:
        params = replace(params, skip_special_tokens=False)
    request_id = request_id or f"chatcmpl-{uuid.uuid4().hex}"
    generation = Generation(engine, state.metrics, [prompt.token_ids], [params], request_id)
    return ChatRun(request_id, generation, params, prompt.token_ids, reading=reading, stream_interval=body.stream_interval)
