"""What the prefix cache reuses, and what it must not. That reuse changes no token is in `test_equality_matrix.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TINY_ENGINE
from xlaserve import LLM, AsyncLLM, SamplingParams

Tiny = Callable[[str], Path]

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def test_a_prompt_for_several_is_computed_about_once(tiny_llm: LLM) -> None:
    tiny_llm.reset_prefix_cache()
    prompt = [5 + i for i in range(150)]
    before = tiny_llm.stats()
    tiny_llm.generate([prompt], SamplingParams(n=4, seed=1, max_tokens=5, ignore_eos=True))
    after = tiny_llm.stats()
    assert after.scheduled_tokens - before.scheduled_tokens == 150 + 3 * (150 - 144) + 4 * 4
    assert after.prompt_tokens - before.prompt_tokens == 4 * 150


def test_cached_tokens_salts_and_resets(tiny_llm: LLM) -> None:
    tiny_llm.reset_prefix_cache()
    prompt = [9 + i for i in range(40)]

    def cached(**options: str) -> int:
        return tiny_llm.generate([prompt], SamplingParams(temperature=0, max_tokens=2, **options))[0].num_cached_tokens  # type: ignore[arg-type]

    assert [cached(), cached(), cached(cache_salt="a"), cached(cache_salt="a"), cached(cache_salt="b"), cached()] == [0, 32, 0, 32, 0, 32]
    tiny_llm.reset_prefix_cache()
    assert [cached(), cached(cache_salt="a")] == [0, 0]


def test_a_reset_while_serving(tiny_model: Tiny) -> None:
    async def test() -> None:
        llm = await asyncio.to_thread(AsyncLLM, str(tiny_model("llama3")), **TINY_ENGINE)
        prompt = [9 + i for i in range(40)]
        cached: list[int] = []
        for turn in range(4):
            if turn == 2:
                await llm.reset_prefix_cache()
            counts = [output.num_cached_tokens async for output in llm.generate(prompt, GREEDY)]
            assert len(set(counts)) == 1
            cached.append(counts[0])
        await llm.close()
        assert cached == [0, 32, 0, 32]

    asyncio.run(asyncio.wait_for(test(), 120))
