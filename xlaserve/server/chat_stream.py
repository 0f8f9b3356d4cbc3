"""The chunks of a streamed chat completion, spliced from prepared bytes; one per event, and one that ends each choice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from xlaserve.server.chat_run import ChatRun
from xlaserve.server.errors import problem_of
from xlaserve.server.generation import Delta
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.streaming import DONE

Usage = Mapping[str, Any]


class ChatChunks:
    """Makes the `data:` frames of one response. All chunks share their head; only the choice differs.

    Args:
        head: the fields that every chunk has: id, object, created, model, system_fingerprint.
        null_usage: chunks without usage say so with a null, as OpenAI does where usage was asked for.
    """

    def __init__(self, head: Mapping[str, Any], *, null_usage: bool) -> None:
        self._head = b"data: " + orjson.dumps(dict(head))[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if null_usage else b"]}\n\n"
        self._after_text = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._before_text: dict[int, bytes] = {}

    def role(self, choice: int, usage: Usage | None, prompt_token_ids: list[int] | None) -> bytes:
        """A choice's first chunk, which names the role; with the prompt's token ids, where wanted, beside the choices, as in vLLM."""
        chunk = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % choice
        frame = self._frame(chunk, usage)
        return frame if prompt_token_ids is None else b'%b,"prompt_token_ids":%b}\n\n' % (frame[:-3], orjson.dumps(prompt_token_ids))

    def content(self, choice: int, text: str) -> bytes:
        """New content of a choice that goes on, with nothing beside it: what nearly all chunks are."""
        before = self._before_text.get(choice)
        if before is None:
            before = self._before_text[choice] = self._head + b'{"index":%d,"delta":{"content":' % choice
        return before + orjson.dumps(text) + self._after_text

    def event(
        self,
        choice: int,
        event: OutputEvent | None,
        logprobs: Mapping[str, Any] | None,
        usage: Usage | None,
        token_ids: list[int] | None = None,
    ) -> bytes:
        """One event of a choice that goes on; None for a token without any."""
        fields = choice, _delta(event), _json(logprobs), _token_ids(token_ids)
        return self._frame(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null%b}' % fields, usage)

    def last(
        self,
        choice: int,
        event: OutputEvent | None,
        logprobs: Mapping[str, Any] | None,
        reason: str,
        stop: int | str | None,
        usage: Usage | None,
        token_ids: list[int] | None = None,
    ) -> bytes:
        """A choice's last chunk: why it ended, vLLM's `stop_reason`, and what text is left."""
        fields = (choice, _delta(event), _json(logprobs), orjson.dumps(reason), orjson.dumps(stop), _token_ids(token_ids))
        return self._frame(b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b%b}' % fields, usage)

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that carries the usage of the whole request."""
        return self._frame(b"", usage)

    def _frame(self, choice: bytes, usage: Usage | None) -> bytes:
        if usage is None:
            return self._head + choice + self._tail
        return self._head + choice + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"


def _json(logprobs: Mapping[str, Any] | None) -> bytes:
    return b"null" if logprobs is None else orjson.dumps(logprobs)


def _token_ids(token_ids: list[int] | None) -> bytes:
    return b"" if token_ids is None else b',"token_ids":' + orjson.dumps(token_ids)


def _delta(event: OutputEvent | None) -> bytes:
    match event:
        case Content(text):
            return b'{"content":%b}' % orjson.dumps(text)
        case None:
            return b"{}"
        case Reasoning(text):
            # vLLM's name and DeepSeek's; clients read one of them.
            written = orjson.dumps(text)
            return b'{"reasoning":%b,"reasoning_content":%b}' % (written, written)
        case ToolCallStart(index, call_id, name):
            call = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            return b'{"tool_calls":[%b]}' % orjson.dumps(call)
        case ToolCallArguments(index, text):
            return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, orjson.dumps(text))


async def chat_events(
    run: ChatRun, request: ChatCompletionRequest, head: Mapping[str, Any], logprobs: LogprobWriter
) -> AsyncGenerator[bytes]:
    """The frames of one streamed response, [DONE] included. An error on the way is a frame of its own, before [DONE].

    Args:
        run: not consumed.
        request: says what usage and ids are wanted.
        head: the fields that every chunk has.
        logprobs: makes the log probabilities of chunks.
    """
    options = request.stream_options
    include_usage = options is not None and options.include_usage is True
    continuous = include_usage and options is not None and options.continuous_usage_stats is True
    with_ids = request.return_token_ids is True
    chunks = ChatChunks(head, null_usage=include_usage)

    nothing_beside = not (continuous or with_ids)
    passes_on = run.plain and nothing_beside

    def frames(given: Delta) -> bytes:
        if passes_on and given.finish_reason is None and not given.logprobs:
            return chunks.content(given.choice, given.text) if given.text else b""
        delta = run.read(given)
        choice, events = delta.choice, delta.events
        usage = run.choice_usage(choice) if continuous else None
        written = logprobs.write(choice, delta.token_ids, delta.logprobs) if delta.logprobs else None
        ids = delta.token_ids if with_ids else None
        if delta.finish_reason is None and len(events) == 1:
            event = events[0]
            if nothing_beside and written is None and isinstance(event, Content):
                return chunks.content(choice, event.text)
            return chunks.event(choice, event, written, usage, ids)
        made: list[bytes] = []
        tail = events.pop() if events and delta.finish_reason is not None and isinstance(events[-1], Content) else None
        for event in events:
            made.append(chunks.event(choice, event, written, usage, ids))
            written, ids = None, [] if with_ids else None
        if delta.finish_reason is not None:
            made.append(chunks.last(choice, tail, written, delta.finish_reason, delta.stop_reason, usage, ids))
        elif not made and (written is not None or continuous or with_ids):
            # A token may mean nothing yet: part of a character, or what could become a stop string or a marker.
            made.append(chunks.event(choice, None, written, usage, ids))
        return b"".join(made)

    try:
        prompt_ids = run.prompt_token_ids if with_ids else None
        yield b"".join(chunks.role(index, run.choice_usage(index) if continuous else None, prompt_ids) for index in range(run.choice_count))
        async with aclosing(run.steps()) as steps:
            async for deltas in steps:
                if frame := frames(deltas[0]) if len(deltas) == 1 else b"".join(map(frames, deltas)):
                    yield frame
        if include_usage:
            yield chunks.usage(run.usage())
    except Exception as error:
        run.abort()
        yield b"data: " + problem_of(error).payload() + b"\n\n"
    yield DONE
