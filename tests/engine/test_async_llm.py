"""The engine inside an application: increments, company, aborts, overload, failure, end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_ENGINE
from xlaserve import LLM, AsyncLLM, RequestOutput, SamplingParams
from xlaserve.engine.core import EngineCore, TokenEvent
from xlaserve.engine.front_end import FrontEnd
from xlaserve.engine.output_stream import OutputStream
from xlaserve.errors import EngineDeadError, InvalidRequestError, OverloadedError

Tiny = Callable[[str], Path]
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
PROMPT = [7, 8, 9]


@pytest.fixture(scope="module")
def model(tiny_model: Tiny) -> str:
    return str(tiny_model("llama3"))


@asynccontextmanager
async def engine(model: str, **options: Any) -> AsyncIterator[AsyncLLM]:
    llm = await asyncio.to_thread(AsyncLLM, model, **{**TINY_ENGINE, **options})
    try:
        yield llm
    finally:
        await llm.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 120))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the engine's thread is about to bring about."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def idle(llm: FrontEnd) -> bool:
    stats = llm.stats()
    return (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


async def fill(llm: AsyncLLM) -> list[OutputStream]:
    """Give every slot of the engine a long request."""
    streams: list[OutputStream] = []
    for count in range(TINY_ENGINE["max_num_seqs"]):
        streams.append(llm.submit(PROMPT, LONG))
        await until(lambda count=count: llm.stats().num_running > count)
    return streams


async def whole(stream: AsyncIterator[RequestOutput]) -> tuple[str, list[int], RequestOutput]:
    text, tokens, last = "", [], None
    async for output in stream:
        assert last is None or not last.finished
        (completion,) = output.outputs
        text, tokens, last = text + completion.text, tokens + completion.token_ids, output
    assert last is not None
    assert last.finished
    return text, tokens, last


def test_increments_add_up_to_what_llm_gives(model: str, tiny_llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=20, ignore_eos=True)
    prompts = [[5 + i, 6, 7] * (i + 1) for i in range(20)]

    async def test() -> None:
        async with engine(model) as llm:
            results = await asyncio.gather(*(whole(llm.generate(prompt, params)) for prompt in prompts))
            for (text, tokens, last), expected in zip(results, tiny_llm.generate(prompts, params), strict=True):
                assert (text, tokens) == (expected.outputs[0].text, expected.outputs[0].token_ids)
                assert last.outputs[0].finish_reason == "length"
            assert llm.stats().compile_events == 0
            await until(lambda: idle(llm))

    run(test())


def test_increments_arrive_one_by_one(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            sizes = [len(output.outputs[0].token_ids) async for output in llm.generate(PROMPT, LONG)]
            assert sum(sizes) == 200
            assert len(sizes) > 50

    run(test())


def test_several_completions_of_one_request(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            finished: dict[int, str | None] = {}
            async for output in llm.generate(PROMPT, SamplingParams(n=3, seed=1, max_tokens=9, ignore_eos=True)):
                for completion in output.outputs:
                    assert finished.get(completion.index) is None
                    finished[completion.index] = completion.finish_reason
                assert output.finished == (list(finished.values()) == ["length"] * 3)
            assert sorted(finished) == [0, 1, 2]

    run(test())


@pytest.mark.parametrize("way", ["stream", "generator", "task", "thread"])
def test_abort_frees_the_blocks(way: str, model: str) -> None:
    async def by_stream(llm: AsyncLLM) -> None:
        stream = llm.submit(PROMPT, LONG)
        await anext(stream)
        stream.abort()
        stream.abort()
        assert [output async for output in stream] == []

    async def by_generator(llm: AsyncLLM) -> None:
        generator = llm.generate(PROMPT, LONG)
        await anext(generator)
        await generator.aclose()

    async def by_task(llm: AsyncLLM) -> None:
        task = asyncio.create_task(whole(llm.generate(PROMPT, LONG)))
        await until(lambda: llm.stats().num_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def by_thread(llm: AsyncLLM) -> None:
        stream = llm.submit(PROMPT, LONG)
        await asyncio.to_thread(stream.abort)
        assert [output async for output in stream if output.finished] == []

    ways: dict[str, Callable[[AsyncLLM], Awaitable[None]]] = {
        "stream": by_stream,
        "generator": by_generator,
        "task": by_task,
        "thread": by_thread,
    }

    async def test() -> None:
        async with engine(model) as llm:
            await ways[way](llm)
            await until(lambda: llm.stats().finished.get("abort") == 1)
            assert idle(llm)
            assert (await whole(llm.generate(PROMPT, LONG)))[2].outputs[0].finish_reason == "length"

    run(test())


def test_a_slow_reader_loses_nothing_and_holds_one_output(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            stream = llm.submit(PROMPT, LONG)
            await until(lambda: idle(llm) and llm.stats().steps > 0)
            await until(lambda: not llm._streams)  # pyright: ignore[reportPrivateUsage]
            outputs = [output async for output in stream]
            assert len(outputs) == 1
            assert len(outputs[0].outputs[0].token_ids) == 200

    run(test())


def test_a_name_can_be_used_again_at_once(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            first = llm.submit(PROMPT, LONG, request_id="name")
            with pytest.raises(InvalidRequestError, match="in use"):
                llm.submit(PROMPT, LONG, request_id="name")
            await anext(first)
            first.abort()
            _, tokens, _ = await whole(llm.submit([11, 12], LONG, request_id="name"))
            assert tokens == (await whole(llm.generate([11, 12], LONG)))[1]

    run(test())


def test_a_full_queue_turns_requests_away(model: str) -> None:
    async def test() -> None:
        async with engine(model, max_queued_requests=4) as llm:
            with pytest.raises(InvalidRequestError, match="n is 5, and the queue holds 4"):
                llm.submit(PROMPT, SamplingParams(n=5))
            streams = await fill(llm)
            streams += [llm.submit(PROMPT, LONG) for _ in range(4)]
            with pytest.raises(OverloadedError, match="4 sequences are waiting, and the queue holds 4"):
                llm.submit(PROMPT, LONG)
            for stream in streams:
                stream.abort()
            await until(lambda: llm.stats().finished.get("abort") == 12)
            assert (await whole(llm.generate(PROMPT, LONG)))[2].finished

    run(test())


def test_a_queue_full_of_tokens_turns_requests_away(model: str) -> None:
    async def test() -> None:
        async with engine(model, max_queued_tokens=10) as llm:
            with pytest.raises(InvalidRequestError, match="prompt has 11 tokens, and the queue holds 10"):
                llm.submit([5] * 11, LONG)
            streams = await fill(llm)
            streams += [llm.submit(PROMPT, LONG) for _ in range(3)]
            with pytest.raises(OverloadedError, match="9 tokens are waiting, the request has 3, and the queue holds 10"):
                llm.submit(PROMPT, LONG)
            streams.append(llm.submit([5], LONG))
            for stream in streams:
                stream.abort()
            await until(lambda: llm.stats().finished.get("abort") == 12)
            assert (await whole(llm.generate(PROMPT, LONG)))[2].finished

    run(test())


def test_bad_requests_fail_at_submission(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            for prompt in ("", [], [512], [5] * 300):
                with pytest.raises(InvalidRequestError):
                    llm.submit(prompt, LONG)
            assert idle(llm)
            assert llm.healthy

    run(test())


def test_a_failing_engine_says_so_to_everybody(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            streams = [llm.submit(PROMPT, LONG) for _ in range(3)]
            await anext(streams[0])

            def broken() -> None:
                raise RuntimeError("the device is gone")

            monkeypatch.setattr(llm._engine.core, "step", broken)  # pyright: ignore[reportPrivateUsage]
            for stream in streams:
                with pytest.raises(EngineDeadError, match="the device is gone"):
                    await whole(stream)
            assert not llm.healthy
            with pytest.raises(EngineDeadError):
                llm.submit(PROMPT, LONG)

    run(test())


def test_a_request_whose_text_fails_ends_alone(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detokenizer that fails for one of three requests: that one ends with "error", gives back its blocks, and no other notices."""

    async def test() -> None:
        async with engine(model) as llm:
            expected = await whole(llm.generate(PROMPT, LONG))
            stream = llm.tokenizer.stream(skip_special_tokens=True)
            monkeypatch.setattr(type(stream), "step", failing_once(type(stream).step, after=30))
            results = await asyncio.gather(*(whole(llm.generate(PROMPT, LONG)) for _ in range(3)))
            reasons = [last.outputs[-1].finish_reason for _, _, last in results]
            assert sorted(map(str, reasons)) == ["error", "length", "length"]
            for (text, tokens, last), reason in zip(results, reasons, strict=True):
                assert reason == "error" or (text, tokens) == expected[:2]
                assert last.finished
            await until(lambda: idle(llm))
            assert llm.stats().finished["error"] == 1
            assert llm.healthy

    run(test())


def failing_once(step: Callable[[Any, int], str], after: int) -> Callable[[Any, int], str]:
    """`TokenStream.step` that raises at one call, of whichever request that is."""
    calls = 0

    def failing(self: Any, token: int) -> str:
        nonlocal calls
        calls += 1
        if calls == after:
            raise ValueError("no text for this token")
        return step(self, token)

    return failing


def test_close_ends_what_runs_and_leaves_no_thread(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            stream = llm.submit(PROMPT, LONG)
            await anext(stream)
            await llm.close()
            assert [output async for output in stream if output.finished] == []
            with pytest.raises(EngineDeadError, match="closed"):
                llm.submit(PROMPT, LONG)
        assert "engine" not in [thread.name for thread in threading.enumerate()]

    run(test())


def test_aborts_at_every_moment_leave_the_pool_whole(model: str) -> None:
    async def test() -> None:
        async with engine(model, num_blocks=33) as llm:

            async def one(i: int) -> None:
                stream = llm.submit([5 + i] * (1 + i * 7 % 100), LONG)
                seen = 0
                async for _ in stream:
                    seen += 1
                    if seen > 2 * i:
                        break
                stream.abort()

            await asyncio.gather(*(one(i) for i in range(60)))
            await until(lambda: idle(llm))
            assert llm.stats().preemptions > 0

    run(test())


def test_an_engine_that_gets_nowhere_is_unhealthy_until_it_gets_on(
    model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with engine(model, stall_timeout=1) as llm:
            held, go_on, step = threading.Event(), threading.Event(), EngineCore.step

            def stuck(core: EngineCore) -> list[TokenEvent]:
                held.set()
                assert go_on.wait(60)
                return step(core)

            monkeypatch.setattr(EngineCore, "step", stuck)
            stream = llm.submit(PROMPT, SamplingParams(max_tokens=5, ignore_eos=True))
            await until(held.is_set)
            assert llm.healthy
            await until(lambda: not llm.healthy)
            assert llm.stats().stalls == 1
            assert "no progress" in caplog.text
            go_on.set()
            assert (await whole(stream))[2].finished
            await until(lambda: llm.healthy)

    run(test())
