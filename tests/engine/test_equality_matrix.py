"""What a request gives does not depend on how the engine works: one plain reference against every way of working.

Ways: asynchronous scheduling or not, how prompts are cut into chunks, prefix caching, room for all or preemption; and the company: alone
or in a crowd, with a cold or a warm cache, beside others that come and go. Tokens, text and ends are equal; log probabilities within
`TOLERANCE`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_ENGINE
from tests.engine.test_async_llm import idle, until
from tests.tooling.crowd import Wish, disturbed
from xlaserve import LLM, AsyncLLM, CompletionOutput, RequestOutput, SamplingParams, StructuredOutput
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.engine_process import start_engine
from xlaserve.engine.front_end import FrontEnd
from xlaserve.engine.output_stream import add_increment

Tiny = Callable[[str], Path]

TOLERANCE = 5e-5
"""Of log probabilities; the largest difference seen is 1.1e-5, on CPU, between graphs that sum in different orders."""
LENGTH: int = TINY_ENGINE["max_model_len"]
SMALL = 21  # blocks: 20 of them hold 320 tokens, for eight sequences at once
CELLS: dict[str, list[Any]] = {
    "async_scheduling": [True, False],
    "max_num_batched_tokens": [32, 64, LENGTH],
    "enable_prefix_caching": [True, False],
    "num_blocks": [TINY_ENGINE["num_blocks"], SMALL],
}
PENALTIES: dict[str, Any] = {
    "presence_penalty": 0.6,
    "frequency_penalty": 0.4,
    "repetition_penalty": 1.2,
    "logit_bias": {9: 3.0, 50: -100.0, 99: 2.5},
    "bad_words": ["a", "the", "of it"],
}
DRAWN: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 7}


def params(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 32, "ignore_eos": True, **options})


SCHEMA = {
    "type": "object",
    "properties": {"identification": {"type": "string", "maxLength": 10}, "measurements": {"type": "array", "items": {"type": "integer"}}},
    "required": ["identification", "measurements"],
    "additionalProperties": False,
}
FORMS = {
    "schema": StructuredOutput(json_schema=SCHEMA),
    "tight schema": StructuredOutput(json_schema=SCHEMA, whitespace="none"),
    "choice": StructuredOutput(choice=["the first of them", "the second of them", "neither"]),
    "grammar": StructuredOutput(grammar='start: "begin" WORD+ "end"\nWORD: / [a-z]{3,9}/'),
}
PARAMS: dict[str, SamplingParams] = {
    "greedy": params(),
    "greedy, long": params(max_tokens=90),
    "seeded": params(**DRAWN),
    "seeded, cut off": params(temperature=1.2, top_k=20, min_p=0.02, seed=8, max_tokens=60),
    "penalties": params(**PENALTIES),
    "penalties, seeded": params(**DRAWN, **PENALTIES, max_tokens=60),
    "allowed ids": params(allowed_token_ids=list(range(20, 90)), frequency_penalty=1.0),
    "logprobs": params(logprobs=20),
    "logprobs, seeded": params(**DRAWN, **PENALTIES, logprobs=2, max_tokens=60),
    "prompt logprobs": params(prompt_logprobs=3),
    "prompt logprobs, three": params(**DRAWN, n=3, prompt_logprobs=0, logprobs=1),
    "three": params(**DRAWN, n=3, max_tokens=50),
    "three, penalties": params(**DRAWN, **PENALTIES, n=3),
    "end of sequence": params(temperature=1.5, seed=1, ignore_eos=False, logit_bias={2: 4.0}, max_tokens=60),
    "schema": params(structured=FORMS["schema"], max_tokens=60),
    "schema, seeded, logprobs": params(**DRAWN, structured=FORMS["schema"], logprobs=1, max_tokens=60),
    "tight schema, three": params(**{**DRAWN, **PENALTIES, "n": 3}, structured=FORMS["tight schema"], max_tokens=60),
    "choice": params(temperature=1.5, seed=3, structured=FORMS["choice"]),
    "grammar": params(**DRAWN, structured=FORMS["grammar"], min_tokens=4),
}
SEQUENCES = sum(each.n for each in PARAMS.values()) + 3 + 4
"""With the three that stop as the reference tells, and the four that reach the model's length."""


def prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of which most begin alike, some beyond a chunk."""
    rng = random.Random(seed)
    begin = [rng.randrange(4, 500) for _ in range(100)]
    return [begin[: rng.choice((0, 40, 100))] + [rng.randrange(4, 500) for _ in range(rng.randint(1, 50))] for _ in range(count)]


NOISE = [
    Wish(prompt, each)
    for prompt, each in zip(
        prompts(12, seed=2),
        [params(**DRAWN, max_tokens=90), params(stop=["e", "th"], max_tokens=90), params(**PENALTIES, n=3, max_tokens=50)] * 4,
        strict=True,
    )
]


@dataclass
class Plain:
    """The requests of the matrix and what each gives by itself, with its prompt in one piece, without reuse, read at once."""

    wishes: list[Wish]
    outputs: list[RequestOutput]


@dataclass
class Tally:
    """What has been compared so far."""

    sequences: int = 0
    logprobs: int = 0
    preemptions: int = 0
    swapped: int = 0
    difference: float = 0.0
    cells: set[str] = field(default_factory=set)

    def compare(self, found: list[RequestOutput], plain: Plain) -> None:
        """Every sequence must be the reference's."""
        for wish, one, other in zip(plain.wishes, found, plain.outputs, strict=True):
            assert one.finished
            for a, b in zip(one.outputs, other.outputs, strict=True):
                assert ending(a) == ending(b), wish
                self._compare(a.logprobs, b.logprobs)
                self.sequences += 1
            self._compare(one.prompt_logprobs, other.prompt_logprobs)
        assert self.difference < TOLERANCE

    def _compare(self, found: list[Any] | None, expected: list[Any] | None) -> None:
        assert (found is None) == (expected is None)
        for one, other in zip(found or [], expected or [], strict=True):
            if one is None or other is None:
                assert one is other
                continue
            assert next(iter(one)) == next(iter(other))
            # Place by place: among the most likely tokens, two that are as likely may change places.
            for (token, a), (expected_token, b) in zip(one.items(), other.items(), strict=True):
                self.swapped += token != expected_token
                self.difference = max(self.difference, abs(a.logprob - b.logprob))
                self.logprobs += 1


def ending(output: CompletionOutput) -> tuple[object, ...]:
    return output.token_ids, output.text, output.finish_reason, output.stop_reason


@pytest.fixture(scope="module")
def plain(tiny_model: Tiny) -> Plain:
    options = {"max_num_batched_tokens": LENGTH, "enable_prefix_caching": False, "async_scheduling": False}
    wishes = [Wish(prompt, each) for prompt, each in zip(prompts(len(PARAMS), seed=1), PARAMS.values(), strict=True)]
    with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, **options}) as llm:
        # Stops that are met on the way: an id, one that would come first of all were it not held off, and a text.
        for number, prompt in enumerate(prompts(3, seed=3)):
            (whole,) = llm.generate([prompt], params())[0].outputs
            first, later = whole.token_ids[0], whole.token_ids[11]
            stops = ({"stop_token_ids": [later]}, {"stop_token_ids": [first], "logit_bias": {first: 50}}, {"stop": whole.text[20:23]})
            wishes.append(Wish(prompt, params(**stops[number], min_tokens=3)))
        # The model's length reached exactly, and one token before it; greedy and drawn.
        rng = random.Random(4)
        for options in ({}, DRAWN):
            for most in (None, 9):
                wishes.append(Wish([rng.randrange(4, 500) for _ in range(LENGTH - 10)], params(**options, max_tokens=most)))
        outputs = [llm.generate([wish.prompt], wish.params)[0] for wish in wishes]
        assert llm.stats().prefix_cache_queries == 0
    ends = [output.outputs[0] for output in outputs]
    assert sum(wish.params.n for wish in wishes) == SEQUENCES
    assert [len(end.token_ids) for end in ends[-4:]] == [10, 9, 10, 9]
    assert [end.finish_reason for end in ends[-7:]] == ["stop"] * 3 + ["length"] * 4
    assert ends[list(PARAMS).index("end of sequence")].finish_reason == "stop"
    distinct = {str(completion.token_ids) for output in outputs for completion in output.outputs}
    assert len(distinct) == SEQUENCES, "prompts must not all give the same answer"
    return Plain(wishes, outputs)


@pytest.fixture(scope="module")
def tally(report: Callable[[str], None]) -> Generator[Tally]:
    tally = Tally()
    yield tally
    report(
        f"equality matrix: {tally.sequences} sequences in {len(tally.cells)} ways of working, with {tally.preemptions} preemptions, "
        f"equal the reference; {tally.logprobs} log probabilities differ by {tally.difference:.1e} at most, "
        f"{tally.swapped} of them are neighbours in rank that changed places"
    )


@pytest.mark.parametrize("num_blocks", CELLS["num_blocks"], ids=["roomy", "small"])
@pytest.mark.parametrize("budget", CELLS["max_num_batched_tokens"])
@pytest.mark.parametrize("caching", CELLS["enable_prefix_caching"], ids=["cache", "no cache"])
@pytest.mark.parametrize("ahead", CELLS["async_scheduling"], ids=["async", "sync"])
def test_equality_matrix(
    *,
    ahead: bool,
    caching: bool,
    budget: int,
    num_blocks: int,
    tiny_model: Tiny,
    plain: Plain,
    tally: Tally,
    request: pytest.FixtureRequest,
) -> None:
    options = {"async_scheduling": ahead, "max_num_batched_tokens": budget, "enable_prefix_caching": caching, "num_blocks": num_blocks}
    compared = tally.sequences
    everything = [wish.prompt for wish in plain.wishes], [wish.params for wish in plain.wishes]
    with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, **options}) as llm:
        for turn in range(1 + caching):
            before = llm.stats()
            tally.compare(llm.generate(*everything), plain)
            after = llm.stats()
            assert (after.preemptions > before.preemptions) == (num_blocks == SMALL)
            assert (after.prefix_cache_hits > before.prefix_cache_hits) == caching
            if turn and num_blocks != SMALL:
                assert after.prefix_cache_hits - before.prefix_cache_hits > before.prefix_cache_hits, "a warm cache gives more"
        tally.compare(disturbed(llm, plain.wishes, NOISE, seed=budget + num_blocks), plain)
        finished = llm.stats().finished
        assert finished["abort"] > len(NOISE) / 2
        for turn in range(1 + caching):
            outputs: list[RequestOutput] = []
            for wish in plain.wishes:
                if not turn:
                    llm.reset_prefix_cache()
                outputs += llm.generate([wish.prompt], wish.params)
            tally.compare(outputs, plain)
        stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
    assert stats.compile_events == 0
    assert tally.sequences - compared == SEQUENCES * (5 if caching else 3)
    tally.preemptions += stats.preemptions
    tally.cells.add(request.node.name)


def test_without_kernels(tiny_model: Tiny, plain: Plain, tally: Tally, request: pytest.FixtureRequest) -> None:
    """What XLA alone computes is the same, in a crowd, chunked and preempted."""
    options = {"kernels": "none", "max_num_batched_tokens": 32, "num_blocks": SMALL}
    with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, **options}) as llm:
        assert llm.info.kernels == "none"
        tally.compare(llm.generate([wish.prompt for wish in plain.wishes], [wish.params for wish in plain.wishes]), plain)
        stats = llm.stats()
    assert stats.preemptions > 0
    assert stats.compile_events == 0
    tally.preemptions += stats.preemptions
    tally.cells.add(request.node.name)


@pytest.mark.parametrize("place", ["thread", "process"])
@pytest.mark.parametrize("ahead", CELLS["async_scheduling"], ids=["async", "sync"])
def test_beside_clients_that_leave(
    *, ahead: bool, place: str, tiny_model: Tiny, plain: Plain, tally: Tally, request: pytest.FixtureRequest
) -> None:
    """The same through `AsyncLLM` and through the server's engine process, which stop strings and aborts reach some iterations late."""
    model = str(tiny_model("llama3"))
    options = {**TINY_ENGINE, "async_scheduling": ahead, "max_num_batched_tokens": 32, "num_blocks": SMALL}
    compared = tally.sequences

    async def test() -> None:
        if place == "process":
            engine = await start_engine(EngineConfig(model=model, **options), lambda line: None)
        else:
            engine = await asyncio.to_thread(AsyncLLM, model, **options)
        try:
            for _ in range(2):
                staying = asyncio.gather(*(stay(engine, wish) for wish in plain.wishes))
                leaving = asyncio.gather(*(leave(engine, wish, 3 * number) for number, wish in enumerate(NOISE)))
                tally.compare(await staying, plain)
                await leaving
            await until(lambda: idle(engine))
            stats = engine.stats()
            assert stats.preemptions > 0
            assert stats.finished["abort"] > 0
            assert stats.compile_events == 0
            tally.preemptions += stats.preemptions
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(test(), 120))
    assert tally.sequences - compared == 2 * SEQUENCES
    tally.cells.add(request.node.name)


async def stay(engine: FrontEnd, wish: Wish) -> RequestOutput:
    """Read a request to its end."""
    total: RequestOutput | None = None
    async for output in engine.generate(wish.prompt, wish.params):
        if total is None:
            total = replace(output, outputs=[CompletionOutput(index, "", []) for index in range(wish.params.n)])
        total.finished, total.prompt_logprobs = output.finished, output.prompt_logprobs or total.prompt_logprobs
        for moved in output.outputs:
            add_increment(total.outputs[moved.index], moved)
    assert total is not None
    return total


async def leave(engine: FrontEnd, wish: Wish, after: int) -> None:
    """Give a request up after some increments."""
    stream = engine.submit(wish.prompt, wish.params)
    while after and await anext(stream, None) is not None:
        after -= 1
    stream.abort()
