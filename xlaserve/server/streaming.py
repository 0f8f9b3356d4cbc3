"""Server-sent events: chunks spliced from prepared bytes, so that a token costs microseconds, and a response that notices a client
which went away or stopped reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from xlaserve.server.errors import problem_of
from xlaserve.server.generation import Delta, Generation
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.pacing import paced
from xlaserve.server.prompts import Prompt
from xlaserve.server.protocol import CompletionRequest

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ChunkTemplate:
    """Makes the `data:` frames of one text completion. All chunks share their head; only the choice differs.

    Args:
        head: the fields that every chunk has: id, object, created, model, system_fingerprint.
        null_usage: chunks without usage say so with a null, as OpenAI does where usage was asked for.
    """

    def __init__(self, head: Mapping[str, Any], *, null_usage: bool) -> None:
        self._head = b"data: " + orjson.dumps(dict(head))[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if null_usage else b"]}\n\n"

    def delta(
        self, choice: int, text: str, logprobs: Mapping[str, Any] | None, usage: Mapping[str, Any] | None, further: bytes = b""
    ) -> bytes:
        """New text of a choice that goes on. `further` fields of the choice begin with a comma."""
        fields = (choice, orjson.dumps(text), _json(logprobs), further)
        return self._frame(b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}' % fields, usage)

    def last(
        self,
        choice: int,
        text: str,
        logprobs: Mapping[str, Any] | None,
        reason: str,
        stop: int | str | None,
        usage: Mapping[str, Any] | None,
        further: bytes = b"",
    ) -> bytes:
        """A choice's last chunk, with what text is left, why it ended, and vLLM's `stop_reason`."""
        fields = (choice, orjson.dumps(text), _json(logprobs), orjson.dumps(reason), orjson.dumps(stop), further)
        return self._frame(b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b%b}' % fields, usage)

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The chunk without choices that carries the usage of the whole request."""
        return self._frame(b"", usage)

    def _frame(self, choice: bytes, usage: Mapping[str, Any] | None) -> bytes:
        if usage is None:
            return self._head + choice + self._tail
        return self._head + choice + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"


def _json(logprobs: Mapping[str, Any] | None) -> bytes:
    return b"null" if logprobs is None else orjson.dumps(logprobs)


async def stream_events(
    generation: Generation,
    request: CompletionRequest,
    head: Mapping[str, Any],
    logprobs: LogprobWriter,
    prompts: Sequence[Prompt],
) -> AsyncGenerator[bytes]:
    """The frames of one streamed text completion, [DONE] included. An error on the way is a frame of its own, before [DONE].

    Args:
        generation: submitted, not consumed.
        request: says what usage and ids are wanted.
        head: the fields that every chunk has.
        logprobs: makes the log probabilities of chunks.
        prompts: of the request, in order.
    """
    options = request.stream_options
    include_usage = options is not None and options.include_usage is True
    continuous = include_usage and options is not None and options.continuous_usage_stats is True
    template = ChunkTemplate(head, null_usage=include_usage)
    with_ids, echo = request.return_token_ids is True, request.echo is True
    # Choices that have yet to say what they say of their prompt.
    unopened = {choice.index for choice in generation.choices} if with_ids or echo else set[int]()

    def frame(delta: Delta) -> bytes:
        text, further, opens = delta.text, b"", delta.choice in unopened
        if opens:
            unopened.discard(delta.choice)
            text = prompts[delta.prompt].echo + text
        if with_ids:
            further = b',"token_ids":' + orjson.dumps(delta.token_ids)
            if opens:
                further += b',"prompt_token_ids":' + orjson.dumps(prompts[delta.prompt].token_ids)
        written = logprobs.write(delta.choice, delta.token_ids, delta.logprobs) if delta.logprobs or (opens and echo) else None
        usage = generation.choice_usage(delta.choice) if continuous else None
        if delta.finish_reason is not None:
            return template.last(delta.choice, text, written, delta.finish_reason, delta.stop_reason, usage, further)
        # A token may add no text yet: part of a character, or what could become a stop string.
        if text or written is not None or continuous or with_ids:
            return template.delta(delta.choice, text, written, usage, further)
        return b""

    try:
        async with aclosing(paced(generation.deltas(), request.stream_interval)) as steps:
            async for deltas in steps:
                if frames := b"".join(map(frame, deltas)):
                    yield frames
        if include_usage:
            yield template.usage(generation.usage())
    except Exception as error:
        generation.abort()
        yield b"data: " + problem_of(error).payload() + b"\n\n"
    yield DONE


class EventStream(Response):
    """A streaming response that aborts its generation when the client disconnects or leaves the connection unread for too long.

    Frames are handed on only as fast as the client reads them: `send` waits while the transport's buffer is full.

    Args:
        frames: what to send.
        abort: called once the response has ended, however it ended.
        send_timeout: seconds one `send` may wait.
    """

    def __init__(self, frames: AsyncGenerator[bytes], abort: Callable[[], None], send_timeout: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._frames = frames
        self._abort = abort
        self._send_timeout = send_timeout
        self._waiting_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_all(send))
        watcher = asyncio.create_task(disconnected(receive))
        unread = asyncio.create_task(self._unread())
        tasks = sender, watcher, unread
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ended == {unread}:
                # Returning with the response incomplete makes the server close the connection.
                log.warning("a client left its stream unread for %g s; its request was aborted", self._send_timeout)
        finally:
            self._abort()
            for task in tasks:
                task.cancel()
            (outcome, *_) = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    async def _send_all(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        async with aclosing(self._frames):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for frame in self._frames:
                self._waiting_since = clock()
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                self._waiting_since = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _unread(self) -> None:
        """Return when one `send` has waited for too long. One timer serves all frames: one for each costs as much as making the frame."""
        clock = asyncio.get_running_loop().time
        left = self._send_timeout
        while left > 0:
            await asyncio.sleep(left)
            since = self._waiting_since
            left = self._send_timeout if since is None else since + self._send_timeout - clock()


async def disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
