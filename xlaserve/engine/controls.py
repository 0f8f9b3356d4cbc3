"""What an operator may ask of a running engine: the calls that it answers, by name, between two iterations.

A call that fails leaves the engine as it was, and says why; whoever waits for an end that cannot come is told at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from xlaserve.engine.core import EngineCore
from xlaserve.engine.messages import Call, Failed, Reply, TokenEvent
from xlaserve.engine.modes import PauseMode
from xlaserve.engine.profiler import Profiler
from xlaserve.errors import CallFailedError, EngineStateError, XlaserveError

log = logging.getLogger(__name__)


class Controls:
    """Executes calls.

    Args:
        core: the engine, in whose thread all of this runs.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        profiler = Profiler()
        self._methods: dict[str, Callable[..., Any]] = {
            "resume": core.resume,
            "sleep": core.sleep,
            "wake": core.wake,
            "reset_prefix_cache": core.reset_prefix_cache,
            "trace": core.trace.recorded,
            "report": core.report,
            "start_profile": profiler.start,
            "stop_profile": profiler.stop,
        }
        self._replies: list[Reply] = []
        self._waiting: list[int] = []  # calls of `pause` that are answered when what runs has ended

    def execute(self, call: Call) -> list[TokenEvent]:
        """Do what a call asks for. Nothing may be in flight.

        Returns:
            What came of it for sequences.
        """
        events: list[TokenEvent] = []
        try:
            if call.method == "pause":
                events = self._pause(call.call_id, **call.arguments)
            elif (method := self._methods.get(call.method)) is not None:
                self._replies.append(Reply(call.call_id, method(**call.arguments)))
            else:
                raise CallFailedError(f"The engine has no method {call.method!r}.")
        except XlaserveError as error:
            self._replies.append(Reply(call.call_id, error=Failed.of(error)))
        except Exception as error:
            log.exception("The engine could not %s", call.method)
            failed = CallFailedError(f"The engine could not {call.method}: {type(error).__name__}: {error}")
            self._replies.append(Reply(call.call_id, error=Failed.of(failed)))
        self._look()
        return events

    def replies(self) -> list[Reply]:
        """Answers to calls, since the last time: to be asked for after each iteration."""
        self._look()
        replies, self._replies = self._replies, []
        return replies

    def _pause(self, call_id: int, mode: PauseMode) -> list[TokenEvent]:
        ended = self._core.pause(mode)
        if mode == "wait":
            self._waiting.append(call_id)
        else:
            self._replies.append(Reply(call_id))
        return ended

    def _look(self) -> None:
        """Answer those who wait for the end of what runs, where it has come, or where it will not."""
        if not self._waiting or self._core.draining:
            return
        error = None
        if not self._core.drained:
            error = Failed.of(EngineStateError("The pause has been called off by another call before all requests had ended."))
        self._replies += [Reply(call_id, error=error) for call_id in self._waiting]
        self._waiting.clear()
