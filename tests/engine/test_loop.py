"""The engine's loop: what it is told reaches the right sequence, and a request that it cannot take ends alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tooling.engine_info import engine_info
from xlaserve.engine.inbox import Inbox
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.engine.loop import EngineLoop
from xlaserve.engine.messages import Add, Call, Finish, Reply, TokenEvent
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence
from xlaserve.engine.trace import Recorded, StepTrace
from xlaserve.errors import CallFailedError, CheckpointError, EngineStateError
from xlaserve.sampling.params import SamplingParams


class ScriptedCore:
    """Gives every sequence three tokens; refuses prompts that begin with 13, at the second completion."""

    def __init__(self) -> None:
        self.left: dict[Sequence, int] = {}
        self.finished: list[tuple[int, str, object]] = []
        self.resets = 0
        self.trace = StepTrace()
        self.draining = False

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def add(self, sequence: Sequence) -> None:
        if sequence.prompt_ids[0] == 13 and sequence.index == 1:
            raise ValueError("unlucky")
        self.left[sequence] = 3

    def finish(self, sequence: Sequence, reason: str, stop_reason: object = None) -> None:
        del self.left[sequence]
        self.finished.append((sequence.key, reason, stop_reason))

    def settle(self) -> list[TokenEvent]:
        return []

    def pause(self, mode: str) -> list[TokenEvent]:
        raise EngineStateError(f"no {mode}")

    def resume(self) -> None:
        raise ZeroDivisionError("oh")

    def sleep(self, level: int) -> int:
        return 100 * level

    def wake(self) -> None:
        raise CheckpointError("no weights")

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def report(self) -> int:
        return len(self.left)

    def step(self) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        for sequence in list(self.left):
            self.left[sequence] -= 1
            last = not self.left[sequence]
            events.append(TokenEvent(sequence.key, 7, "length" if last else None))
            if last:
                del self.left[sequence]
        return events


class Harness:
    def __init__(self) -> None:
        self.core = ScriptedCore()
        self.inbox = Inbox()
        self.loop = EngineLoop(self.core, self.inbox)  # type: ignore[arg-type]
        self.events: list[TokenEvent] = []
        self.replies: list[Reply] = []
        self.inputs = InputProcessor(None, engine_info(vocab_size=99, max_model_len=99, eos_ids=()), seed=0)  # type: ignore[arg-type]

    def request(self, token: int, n: int = 1) -> Request:
        return self.inputs.request([token], SamplingParams(n=n), None)

    def run(self, *then: Any) -> None:
        """Until nothing is left to do; `then` are messages that come one after each iteration."""
        messages = list(then)

        def tell(events: list[TokenEvent], replies: list[Reply]) -> None:
            self.events += events
            self.replies += replies
            if messages:
                self.inbox.put(messages.pop(0))
            elif not self.core.has_work:
                self.inbox.close()

        self.loop.run(tell)


@pytest.mark.parametrize("crossing", [False, True])
def test_a_request_that_cannot_be_taken_ends_alone(crossing: bool, caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    first, bad, last = harness.request(5, 2), harness.request(13, 3), harness.request(6)
    for request in (first, bad, last):
        harness.inbox.put(Add.of(request) if crossing else request)
    harness.run()
    ends = {event.key: event.finish_reason for event in harness.events if event.finish_reason}
    assert ends == {**dict.fromkeys(first.keys + last.keys, "length"), **dict.fromkeys(bad.keys, "error")}
    assert harness.core.finished == [(bad.keys[0], "error", None)]
    assert harness.loop.num_accepted == 6
    assert "could not take it" in caplog.text


def test_a_message_that_makes_no_sequence_ends_its_request_alone() -> None:
    harness = Harness()
    good, bad = harness.request(5), Add.of(harness.request(6))
    bad.params["temperature"] = "warm"
    harness.inbox.put(bad)
    harness.inbox.put(good)
    harness.run()
    assert {event.key: event.finish_reason for event in harness.events if event.finish_reason} == {
        bad.keys[0]: "error",
        good.keys[0]: "length",
    }


def test_finishes_reach_their_sequence_and_come_too_late_without_harm() -> None:
    harness = Harness()
    request = harness.request(5, 2)
    one, two = request.keys
    harness.inbox.put(request)
    harness.run(Finish(one, "stop", "text"), Finish(one, "abort"), Finish(two, "abort"), Finish(12345, "abort"))
    assert harness.core.finished == [(one, "stop", "text")]
    assert [event.finish_reason for event in harness.events if event.key == two] == [None, None, "length"]
    assert not harness.loop._sequences  # pyright: ignore[reportPrivateUsage]


def test_calls_are_answered_in_order_and_failing_ones_with_their_error(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    request = harness.request(5)
    calls = [
        Call(1, "sleep", {"level": 2}),
        Call(2, "reset_prefix_cache", {}),
        Call(3, "pause", {"mode": "wait"}),
        Call(4, "wake", {}),
        Call(5, "resume", {}),
        Call(6, "explode", {}),
        Call(7, "sleep", {"depth": 2}),
        Call(8, "pause", {}),
        Call(9, "trace", {}),
    ]
    for message in (request, *calls):
        harness.inbox.put(message)
    harness.run()
    assert [reply.call_id for reply in harness.replies] == list(range(1, 10))
    results = [reply.result if reply.error is None else reply.error.error() for reply in harness.replies]
    assert results[:2] == [200, None]
    assert [type(error) for error in results[2:8]] == [
        EngineStateError,
        CheckpointError,
        CallFailedError,
        CallFailedError,
        CallFailedError,
        CallFailedError,
    ]
    assert [str(results[i]) for i in (3, 4, 5)] == [
        "no weights",
        "The engine could not resume: ZeroDivisionError: oh",
        "The engine has no method 'explode'.",
    ]
    assert results[8] == Recorded([], [])
    assert harness.core.resets == 1
    assert caplog.text.count("could not") >= 3
    assert [event.finish_reason for event in harness.events] == [None, None, "length"], "requests go on"


def test_an_iteration_that_cannot_be_read_for_a_call_ends_the_loop() -> None:
    harness = Harness()
    harness.core.settle = lambda: 1 // 0  # type: ignore[method-assign, assignment, return-value]
    harness.inbox.put(Call(1, "trace", {}))
    with pytest.raises(ZeroDivisionError):
        harness.run()


def test_a_failing_iteration_ends_the_loop() -> None:
    harness = Harness()
    harness.core.step = lambda: 1 // 0  # type: ignore[method-assign, assignment, return-value]
    harness.inbox.put(harness.request(5))
    with pytest.raises(ZeroDivisionError):
        harness.run()
