"""The engine's thread: takes messages, runs iterations, tells what came of them. The same wherever the user's side is."""

from __future__ import annotations

import logging
from collections.abc import Callable

from xlaserve.engine.controls import Controls
from xlaserve.engine.core import EngineCore
from xlaserve.engine.inbox import Inbox
from xlaserve.engine.messages import Add, Call, Finish, Reply, TokenEvent
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence

Tell = Callable[[list[TokenEvent], list[Reply]], None]

log = logging.getLogger(__name__)


class EngineLoop:
    """Runs an engine until its inbox is closed.

    Args:
        core: the engine.
        inbox: what it is told.

    Attributes:
        num_accepted: sequences taken out of the inbox so far.
        num_accepted_tokens: tokens of their prompts.
    """

    def __init__(self, core: EngineCore, inbox: Inbox) -> None:
        self._core = core
        self._inbox = inbox
        self._controls = Controls(core)
        self._sequences: dict[int, Sequence] = {}
        self.num_accepted = self.num_accepted_tokens = 0

    def run(self, tell: Tell) -> None:
        """Iterate. `tell` gets the events of an iteration or a call, of which there may be none, and answers to calls.

        Raises:
            Exception: an iteration failed; the engine cannot go on.
        """
        while (messages := self._inbox.take(lambda: self._core.has_work)) is not None:
            events: list[TokenEvent] = []
            for message in messages:
                if isinstance(message, Finish):
                    self._finish(message)
                elif isinstance(message, Call):
                    # Each told by itself: a sequence moves once in what is told at once.
                    self._tell(self._core.settle(), tell)
                    self._tell(self._controls.execute(message), tell)
                else:
                    events += self._add(message)
            events += self._core.step()
            self._tell(events, tell)

    def _tell(self, events: list[TokenEvent], tell: Tell) -> None:
        for event in events:
            if event.finish_reason is not None:
                self._sequences.pop(event.key, None)
        tell(events, self._controls.replies())

    def _add(self, request: Request | Add) -> list[TokenEvent]:
        keys = request.keys
        try:
            for sequence in request.sequences() if isinstance(request, Add) else request.sequences:
                self._core.add(sequence)
                self._sequences[sequence.key] = sequence
        except Exception:
            log.exception("Request %s has ended: the engine could not take it", request.request_id)
            for key in keys:
                self._finish(Finish(key, "error"))
            return [TokenEvent(key, None, "error") for key in keys]
        finally:
            self.num_accepted += len(keys)
            self.num_accepted_tokens += len(request.prompt_ids)
        return []

    def _finish(self, finish: Finish) -> None:
        if (sequence := self._sequences.pop(finish.key, None)) is not None:
            self._core.finish(sequence, finish.reason, finish.stop_reason)
