"""Calls to an engine in a thread: every one ends, with a result, an error of its own type, or the engine's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_async_llm import LONG, PROMPT, engine, run, until, whole
from xlaserve import AsyncLLM
from xlaserve.engine.calls import OpenCalls
from xlaserve.engine.core import EngineCore
from xlaserve.engine.messages import Call, Failed, Reply
from xlaserve.errors import CallFailedError, CheckpointError, EngineDeadError, EngineStateError, InvalidRequestError

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tiny_model: Tiny) -> str:
    return str(tiny_model("llama3"))


class Wire:
    """Open calls whose engine the test plays."""

    def __init__(self) -> None:
        self.sent: list[Call] = []
        self.calls = OpenCalls(self.sent.append)

    async def call(self, method: str, **arguments: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(self.calls.call(method, arguments))
        await asyncio.sleep(0)
        return task

    @property
    def num_open(self) -> int:
        return len(self.calls._open)  # pyright: ignore[reportPrivateUsage]


def test_answers_find_their_call_in_any_order() -> None:
    async def test() -> None:
        wire = Wire()
        one, two, three = await wire.call("a"), await wire.call("b", x=1), await wire.call("c")
        assert [(call.method, call.arguments) for call in wire.sent] == [("a", {}), ("b", {"x": 1}), ("c", {})]
        ids = [call.call_id for call in wire.sent]
        wire.calls.answer(Reply(ids[2], "third"))
        wire.calls.answer(Reply(ids[0], error=Failed.of(EngineStateError("asleep"))))
        wire.calls.answer(Reply(ids[1]))
        assert (await three, await two) == ("third", None)
        with pytest.raises(EngineStateError, match=r"^asleep$"):
            await one
        assert wire.num_open == 0

    run(test())


def test_who_stops_waiting_leaves_nothing_and_a_late_answer_harms_nobody() -> None:
    async def test() -> None:
        wire = Wire()
        task, other = await wire.call("a"), await wire.call("b")
        task.cancel()
        wire.calls.answer(Reply(wire.sent[0].call_id, 1))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert wire.num_open == 1
        wire.calls.answer(Reply(wire.sent[0].call_id, 1))
        wire.calls.answer(Reply(wire.sent[1].call_id, 2))
        assert await other == 2

    run(test())


def test_the_end_of_the_engine_ends_every_call_and_those_to_come() -> None:
    async def test() -> None:
        wire = Wire()
        tasks = [await wire.call("a") for _ in range(3)]
        tasks[0].cancel()
        wire.calls.end(EngineDeadError("it has burnt down"))
        wire.calls.end(EngineDeadError("it has been closed"))
        for task in tasks[1:]:
            with pytest.raises(EngineDeadError, match="burnt down"):
                await task
        with pytest.raises(EngineDeadError, match="burnt down"):
            await wire.calls.call("b", {})
        assert (wire.num_open, len(wire.sent)) == (0, 3)

    run(test())


def test_bad_calls_are_typed_errors_and_the_engine_goes_on(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            call = llm._connection.call  # pyright: ignore[reportPrivateUsage]
            stream = llm.submit(PROMPT, LONG)
            first = await anext(stream)
            with pytest.raises(CallFailedError, match="no method 'explode'"):
                await call("explode")
            with pytest.raises(CallFailedError, match="could not sleep: TypeError"):
                await call("sleep", depth=3)
            for mode in ("", "KEEP", None, ["keep"], 1):
                with pytest.raises(InvalidRequestError, match="mode must be one of keep, abort, wait") as caught:
                    await llm.pause(mode)  # type: ignore[arg-type]
                assert caught.value.field == "mode"
            for level in (0, 3, "1", True, None, 1.5):
                with pytest.raises(InvalidRequestError, match="level must be 1 or 2") as caught:
                    await llm.sleep(level)  # type: ignore[arg-type]
                assert caught.value.field == "level"
            rest = (await whole(stream))[1]
            assert len(first.outputs[0].token_ids + rest) == 200
            assert not llm.is_paused

    run(test())


def test_a_failing_engine_ends_its_calls(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            waiting, stream = await wait_for_a_pause(llm)

            def broken(self: EngineCore) -> None:
                raise RuntimeError("the device is gone")

            monkeypatch.setattr(EngineCore, "step", broken)
            with pytest.raises(EngineDeadError, match="the device is gone"):
                await waiting
            with pytest.raises(EngineDeadError, match="the device is gone"):
                await whole(stream)
            for call in (llm.resume, llm.trace, llm.reset_prefix_cache, llm.sleep, llm.wake, llm.pause):
                with pytest.raises(EngineDeadError, match="the device is gone"):
                    await call()

    run(test())


def test_closing_ends_calls(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            waiting, _ = await wait_for_a_pause(llm)
            await llm.close()
            with pytest.raises(EngineDeadError, match="has been closed"):
                await waiting
            with pytest.raises(EngineDeadError, match="has been closed"):
                await llm.resume()

    run(test())


async def wait_for_a_pause(llm: AsyncLLM) -> tuple[asyncio.Task[None], Any]:
    """A pause that waits for a request that is not nearly done."""
    stream = llm.submit(PROMPT, LONG)
    await anext(stream)
    await until(lambda: llm.stats().num_running == 1)
    waiting = asyncio.create_task(llm.pause("wait"))
    await asyncio.sleep(0)
    return waiting, stream


def test_a_wake_that_fails_leaves_the_engine_asleep(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            before = await whole(llm.generate(PROMPT, LONG))
            await llm.sleep(2)
            runner: Any = llm._engine.core._runner  # pyright: ignore[reportPrivateUsage]
            load = runner._load

            def unreadable() -> None:
                raise CheckpointError("the disk is gone")

            monkeypatch.setattr(runner, "_load", unreadable)
            with pytest.raises(CheckpointError, match="the disk is gone"):
                await llm.wake()
            assert llm.is_sleeping
            assert llm.healthy
            monkeypatch.setattr(runner, "_load", load)
            await llm.wake()
            assert not llm.is_sleeping
            assert (await whole(llm.generate(PROMPT, LONG)))[1] == before[1]

    run(test())
