"""One response being generated: its state, which can be asked for at any time, and its events, which move it on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from xlaserve.server.chat_run import ChatRun
from xlaserve.server.errors import GenerationFailedError, problem_of
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.responses.head import response_usage
from xlaserve.server.responses.items import Item
from xlaserve.server.responses.logprobs import TextLogprobs
from xlaserve.server.responses.output import EventLine, Output

_UNFINISHED = ("queued", "in_progress")
# OpenAI's words for why a response failed know no others that a server like this one could mean.
_ERROR_CODE = "server_error"


class ResponseRun:
    """Generates when `events` is iterated.

    Args:
        head: the response object without output; not changed.
        chat: submitted, not consumed.
        logprobs: makes chat log probabilities.
    """

    def __init__(self, head: dict[str, Any], chat: ChatRun, logprobs: LogprobWriter) -> None:
        self.error: Exception | None = None
        self._head = head
        self._chat = chat
        self._line = EventLine()
        self._output = Output(self._line, TextLogprobs(logprobs))
        self._status = "queued" if head["background"] else "in_progress"
        self._completed_at: int | None = None

    @property
    def unfinished(self) -> bool:
        """Whether more may come."""
        return self._status in _UNFINISHED

    def abort(self) -> None:
        """Gives up what still runs and frees its KV blocks; what was generated up to now stays."""
        if self.unfinished:
            self._status = "cancelled"
        self._chat.abort()

    def items(self) -> list[Item]:
        """The output items so far."""
        return self._output.items("in_progress" if self.unfinished else "incomplete")

    def response(self) -> dict[str, Any]:
        """The response object as it stands."""
        return {
            **self._head,
            "status": self._status,
            "completed_at": self._completed_at,
            "error": None if self.error is None else {"code": _ERROR_CODE, "message": problem_of(self.error).message},
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "output": self.items(),
            "usage": None if self.unfinished else response_usage(self._chat.usage()),
        }

    async def events(self) -> AsyncGenerator[list[bytes]]:
        """The frames of all events, one frame each, as the engine produces them.

        An error on the way does not raise, but ends with the events that tell of it; `error` has it then.
        """
        try:
            yield self._opening()
            reason: str | None = None
            async with aclosing(self._chat.deltas()) as steps:
                async for deltas in steps:
                    frames: list[bytes] = []
                    for delta in deltas:
                        frames += self._output.feed(delta)
                        reason = delta.finish_reason or reason
                    if frames:
                        yield frames
            if reason == "abort":
                raise GenerationFailedError("The request was aborted by the operator of this server.")
            yield self._ending("incomplete" if reason == "length" else "completed")
        except Exception as error:
            yield self._failure(error)
        finally:
            self.abort()

    def _opening(self) -> list[bytes]:
        frames = [self._lifecycle("response.created")]
        if self._status == "queued":
            frames.append(self._lifecycle("response.queued"))
            self._status = "in_progress"
        return [*frames, self._lifecycle("response.in_progress")]

    def _ending(self, status: str) -> list[bytes]:
        frames = self._output.finish(status)
        self._status = status
        if status == "completed":
            self._completed_at = int(time.time())
        return [*frames, self._lifecycle(f"response.{status}")]

    def _failure(self, error: Exception) -> list[bytes]:
        self.error, self._status = error, "failed"
        problem = problem_of(error)
        told = self._line.event("error", code=problem.code, message=problem.message, param=problem.param)
        return [told, self._lifecycle("response.failed")]

    def _lifecycle(self, kind: str) -> bytes:
        return self._line.event(kind, response=self.response())
