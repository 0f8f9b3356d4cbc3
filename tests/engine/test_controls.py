"""An engine that is paused or asleep computes nothing and loses nothing: what comes after is what would have come without."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY_ENGINE
from tests.engine.test_async_llm import LONG, PROMPT, engine, fill, idle, run, until, whole
from xlaserve import LLM, RequestOutput, SamplingParams
from xlaserve.engine.core import EngineCore
from xlaserve.engine.watchdog import Watchdog
from xlaserve.errors import EngineStateError, OverloadedError
from xlaserve.models.host_memory import HostMemory
from xlaserve.platforms.cpu import CPUPlatform

Tiny = Callable[[str], Path]
SHORT = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
MANNERS: dict[str, SamplingParams] = {
    "greedy": LONG,
    "seeded": SamplingParams(temperature=1.2, seed=7, max_tokens=120, ignore_eos=True),
    "several": SamplingParams(temperature=1.0, seed=8, n=3, max_tokens=100, ignore_eos=True),
    "penalties": SamplingParams(
        temperature=0.9, seed=9, max_tokens=120, ignore_eos=True, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4
    ),
    "bias": SamplingParams(temperature=1.0, seed=10, max_tokens=120, ignore_eos=True, logit_bias={7: 4.0, 8: -3.0}, bad_words=["a", "th"]),
    "allowed": SamplingParams(temperature=1.0, seed=11, max_tokens=120, ignore_eos=True, allowed_token_ids=list(range(20, 60)), logprobs=3),
}


@pytest.fixture(scope="module")
def model(tiny_model: Tiny) -> str:
    return str(tiny_model("llama3"))


async def tokens_of(stream: AsyncIterator[RequestOutput]) -> dict[int, list[int]]:
    """The tokens of each completion."""
    tokens: dict[int, list[int]] = {}
    async for output in stream:
        for completion in output.outputs:
            tokens.setdefault(completion.index, []).extend(completion.token_ids)
    return tokens


def logprobs_of(output: RequestOutput) -> list[float]:
    return [entry.logprob for place in output.outputs[0].logprobs or () for entry in place.values()]


def test_keep_freezes_everything_and_resume_goes_on(model: str) -> None:
    async def test() -> None:
        async with engine(model, max_queued_requests=2) as llm:
            expected = await whole(llm.generate(PROMPT, LONG))
            stream = llm.submit(PROMPT, LONG)
            assert not llm.is_paused
            first = (await anext(stream)).outputs[0].token_ids
            await llm.pause()
            assert llm.is_paused
            before = llm.stats()
            assert before.num_running == 1
            assert (before.num_free_blocks, before.finished["length"]) == (before.num_blocks - held_blocks(before), 1)

            # New requests wait, in a queue that is as long as ever, and can be aborted.
            late, gone = llm.submit(PROMPT, SHORT), llm.submit(PROMPT, SHORT)
            await until(lambda: llm.stats().num_waiting == 2)
            with pytest.raises(OverloadedError):
                llm.submit(PROMPT, SHORT)
            gone.abort()
            await until(lambda: llm.stats().num_waiting == 1)
            await llm.pause()
            after = llm.stats()
            assert (after.steps, after.generation_tokens) == (before.steps, before.generation_tokens)

            await llm.resume()
            assert not llm.is_paused
            assert first + (await whole(stream))[1] == expected[1]
            assert (await whole(late))[1] == expected[1][:5]
            await until(lambda: idle(llm))
            assert llm.stats().preemptions == 0

    run(test())


def held_blocks(stats: Any) -> int:
    return stats.num_blocks - stats.num_free_blocks


def test_abort_ends_what_runs_and_waits(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            streams = await fill(llm)
            streams += [llm.submit(PROMPT, LONG) for _ in range(3)]
            await llm.pause("abort")
            assert llm.is_paused
            assert idle(llm)
            ends = [(await whole(stream))[2] for stream in streams]
            assert {output.outputs[0].finish_reason for output in ends} == {"abort"}
            assert llm.stats().finished == {"abort": 11}
            late = llm.submit(PROMPT, SHORT)
            await until(lambda: llm.stats().num_waiting == 1)
            await llm.resume()
            assert (await whole(late))[2].outputs[0].finish_reason == "length"

    run(test())


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_wait_lets_what_is_there_end_and_nothing_else_begin(model: str, policy: str) -> None:
    async def test() -> None:
        async with engine(model, scheduling_policy=policy) as llm:
            streams = await fill(llm)
            streams += [llm.submit(PROMPT, SHORT) for _ in range(3)]
            pausing = asyncio.create_task(llm.pause("wait"))
            await asyncio.sleep(0)
            urgent = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, priority=-5 if policy == "priority" else 0)
            late = llm.submit(PROMPT, urgent)
            await pausing
            assert llm.is_paused
            stats = llm.stats()
            assert (stats.num_running, stats.num_waiting, stats.finished) == (0, 1, {"length": 11})
            assert all([(await whole(stream))[2].outputs[0].finish_reason == "length" for stream in streams])
            steps = stats.steps
            await llm.pause("wait")
            assert llm.stats().steps == steps, "what came later still waits"
            await llm.resume()
            assert len((await whole(late))[1]) == 5

    run(test())


@pytest.mark.parametrize("by", ["resume", "pause", "sleep"])
def test_a_wait_that_is_called_off_says_so(model: str, by: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            expected = await whole(llm.generate(PROMPT, LONG))
            stream = llm.submit(PROMPT, LONG)
            first = (await anext(stream)).outputs[0].token_ids
            pausing = asyncio.create_task(llm.pause("wait"))
            await asyncio.sleep(0)
            await getattr(llm, by)()
            with pytest.raises(EngineStateError, match="called off"):
                await pausing
            assert llm.is_paused == (by != "resume")
            if by == "sleep":
                with pytest.raises(EngineStateError, match="wake it"):
                    await llm.resume()
                with pytest.raises(EngineStateError, match="wake it"):
                    await llm.pause("wait")
                await llm.wake()
            await llm.resume()
            assert first + (await whole(stream))[1] == expected[1]

    run(test())


def test_a_paused_engine_neither_spins_nor_stalls(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        looks: list[bool] = []
        look, turns, step = Watchdog.look, 0, EngineCore.step

        def noted(self: Watchdog, now: float, *, has_work: bool, progress: int) -> bool:
            looks.append(has_work)
            return look(self, now, has_work=has_work, progress=progress)

        def counted(self: EngineCore) -> Any:
            nonlocal turns
            turns += 1
            return step(self)

        monkeypatch.setattr(Watchdog, "look", noted)
        monkeypatch.setattr(EngineCore, "step", counted)
        async with engine(model, stall_timeout=1) as llm:
            stream = llm.submit(PROMPT, LONG)
            await anext(stream)
            await llm.pause()
            turns = 0
            looks.clear()
            await until(lambda: len(looks) >= 6)  # a look every quarter of the stall timeout
            assert turns <= 1, "the one in which it was paused"
            assert not any(looks[1:])
            assert llm.healthy
            assert llm.stats().stalls == 0
            await llm.resume()
            assert (await whole(stream))[2].finished

    run(test())


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_in_the_middle_of_generation_changes_no_token(model: str, level: Any, tiny_llm: LLM) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            prompt = [9 + i for i in range(40)]
            expected = {name: await tokens_of(llm.generate(prompt, params)) for name, params in MANNERS.items()}
            assert len({str(tokens) for tokens in expected.values()}) == len(MANNERS)
            streams = {name: llm.submit(prompt, params) for name, params in MANNERS.items()}
            tasks = {name: asyncio.create_task(tokens_of(stream)) for name, stream in streams.items()}
            started = llm.stats().generation_tokens
            freed: list[int] = []
            for turn in range(3):
                # Slots and rows differ from one turn to the next, and all requests are under way.
                await until(lambda turn=turn: llm.stats().generation_tokens >= started + 60 * (turn + 1))
                freed.append(await llm.sleep(level))
                stats = llm.stats()
                assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)
                assert stats.sleep_level == level
                assert stats.num_waiting > 4
                assert llm.is_sleeping
                assert llm.is_paused
                assert await llm.sleep(1) == 0
                await llm.wake()
                assert not llm.is_sleeping
                assert not llm.is_paused
            assert {name: await task for name, task in tasks.items()} == expected
            spec = llm._engine.plan.spec  # pyright: ignore[reportPrivateUsage]
            held = [*spec.kv(), *spec.state(), *(spec.parameters().values() if level == 2 else ())]
            assert set(freed) == {sum(array.size * array.dtype.itemsize for array in held)}
            await until(lambda: idle(llm))
            assert llm.stats().compile_events == 0
            assert llm.stats().preemptions == 0, "nobody was short of blocks"

    run(test())


@pytest.mark.parametrize("name", ["penalties", "bias", "allowed"])
def test_a_slot_that_the_same_sequence_takes_again_is_loaded_again(model: str, name: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            prompt = [9 + i for i in range(40)]
            expected = (await tokens_of(llm.generate(prompt, MANNERS[name])))[0]
            stream = llm.submit(prompt, MANNERS[name])
            begun = (await anext(stream)).outputs[0].token_ids
            await llm.sleep()
            assert llm.stats().num_waiting == 1
            await llm.wake()
            assert begun + (await tokens_of(stream))[0] == expected

    run(test())


def test_llm_sleeps_and_wakes(model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO", "xlaserve")
    trims: list[CPUPlatform] = []
    trim = CPUPlatform.trim
    monkeypatch.setattr(CPUPlatform, "trim", lambda self: trims.append(self) or trim(self))
    memory: list[weakref.ref[Any]] = []
    empty = HostMemory.empty

    def record(self: HostMemory, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        array = empty(self, shape, dtype)
        memory.append(weakref.ref(array.base))
        return array

    monkeypatch.setattr(HostMemory, "empty", record)
    prompt = [9 + i for i in range(40)]
    params = [SHORT, SamplingParams(temperature=0.0, max_tokens=5, logprobs=4), MANNERS["penalties"]]
    with LLM(model, **TINY_ENGINE) as llm:
        before = [llm.generate(prompt, p)[0] for p in params]
        assert before[2].num_cached_tokens == 32
        one = llm.sleep()
        assert memory
        assert all(held() is not None for held in memory)
        two = llm.sleep(2)
        assert all(held() is None for held in memory), "the weights' memory itself is given back, not only JAX's names for it"
        assert (one > 0, two > 0, llm.sleep(2)) == (True, True, 0)
        assert len(trims) == 3, "freed memory is offered to the machine"
        assert llm.is_sleeping
        for request in (lambda: llm.generate(prompt), lambda: llm.chat([{"role": "user", "content": "hi"}])):
            with pytest.raises(EngineStateError, match="sleeps"):
                request()
        llm.wake()
        assert [held() is not None for held in memory] == [False] * (len(memory) // 2) + [True] * (len(memory) // 2), "read again"
        assert not llm.is_sleeping
        after = [llm.generate(prompt, p)[0] for p in params]
        assert after[0].num_cached_tokens == 0, "the KV of what was computed before is gone"
        assert [a.outputs[0].token_ids for a in after] == [b.outputs[0].token_ids for b in before]
        assert logprobs_of(after[1]) == pytest.approx(logprobs_of(before[1]), abs=1e-5)
        assert llm.stats().compile_events == 0
        llm.wake()
        assert llm.trace()["traceEvents"]
    assert f"Asleep at level 1: {one / 2**20:.1f} MiB" in caplog.text
    assert f"Asleep at level 2: {two / 2**20:.1f} MiB" in caplog.text
    assert caplog.text.count("Awake after") == 1


def test_trace_and_reset_while_it_serves(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            stream = llm.submit([9 + i for i in range(40)], LONG)
            await anext(stream)
            trace = await llm.trace()
            spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
            # All that has been dispatched has been read.
            assert [e["name"] for e in spans if e["tid"] == 1] == [
                e["name"] for e in spans if e["tid"] == 0 and e["name"].startswith("step")
            ]
            await llm.reset_prefix_cache()
            assert (await whole(stream))[2].finished
            (output,) = [output async for output in llm.generate([9 + i for i in range(40)], SHORT) if output.finished]
            assert output.num_cached_tokens == 0

    run(test())


def test_requests_and_aborts_while_asleep(model: str) -> None:
    async def test() -> None:
        async with engine(model) as llm:
            expected = await whole(llm.generate(PROMPT, LONG))
            running, gone = llm.submit(PROMPT, LONG), llm.submit(PROMPT, LONG)
            begun = (await anext(running)).outputs[0].token_ids
            await anext(gone)
            await llm.sleep(2)
            late = llm.submit(PROMPT, SHORT)
            gone.abort()
            await until(lambda: llm.stats().num_waiting == 2)
            await llm.wake()
            assert begun + (await whole(running))[1] == expected[1]
            assert (await whole(late))[1] == expected[1][:5]
            assert llm.stats().finished["abort"] == 1

            stream = llm.submit(PROMPT, LONG)
            await anext(stream)
            await llm.sleep()
            await llm.pause("abort")
            assert (await whole(stream))[2].outputs[0].finish_reason == "abort"
            assert llm.is_sleeping
            await llm.wake()
            assert (await whole(llm.generate(PROMPT, LONG)))[1] == expected[1]

    run(test())
