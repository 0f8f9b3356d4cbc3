"""One message being generated: its events, and the whole of it once they have all been made."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from xlaserve.server.anthropic.blocks import Blocks, event
from xlaserve.server.chat_run import ChatRun
from xlaserve.server.errors import GenerationFailedError, problem_of

_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use"}


class MessageRun:
    """Generates when `events` is iterated.

    Args:
        chat: submitted, not consumed.
        model: its name.
        filled: whether the most tokens that can be generated are what the context has room for, rather than what was asked for.
    """

    def __init__(self, chat: ChatRun, model: str, *, filled: bool) -> None:
        self.error: Exception | None = None
        self._id = f"msg_{uuid.uuid4().hex}"
        self._chat = chat
        self._model = model
        self._at_length = "model_context_window_exceeded" if filled else "max_tokens"
        self._blocks = Blocks()
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def abort(self) -> None:
        """Gives up what still runs and frees its KV blocks."""
        self._chat.abort()

    def message(self) -> dict[str, Any]:
        """The message object as it stands."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": self._blocks.done,
            **self._stop,
            "usage": self._usage(),
        }

    async def events(self) -> AsyncGenerator[bytes]:
        """The frames of all events, as the engine produces them.

        An error on the way does not raise, but ends with the event that tells of it; `error` has it then.
        """
        try:
            yield event("message_start", message=self.message()) + event("ping")
            ended: tuple[str | None, int | str | None] = (None, None)
            async with aclosing(self._chat.deltas()) as steps:
                async for deltas in steps:
                    frames: list[bytes] = []
                    for delta in deltas:
                        frames += self._blocks.feed(delta)
                        if delta.finish_reason is not None:
                            ended = (delta.finish_reason, delta.stop_reason)
                    if frames:
                        yield b"".join(frames)
            self._stop = self._stopped(*ended)
            ending = [event("message_delta", delta=self._stop, usage=self._usage()), event("message_stop")]
            yield b"".join([*self._blocks.finish(), *ending])
        except Exception as error:
            self.error = error
            yield b"event: error\ndata: %b\n\n" % problem_of(error).anthropic_payload()
        finally:
            self.abort()

    async def generate(self) -> None:
        """The same for nobody to read along."""
        async with aclosing(self.events()) as steps:
            async for _ in steps:
                pass

    def _stopped(self, reason: str | None, by: int | str | None) -> dict[str, str | None]:
        if reason == "abort" or reason is None:
            raise GenerationFailedError("The request was aborted by the operator of this server.")
        if reason == "length":
            return {"stop_reason": self._at_length, "stop_sequence": None}
        if reason == "stop" and isinstance(by, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": by}
        return {"stop_reason": _STOP_REASONS[reason], "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        usage = self._chat.usage()
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {
                "thinking_tokens": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0),
            },
        }
