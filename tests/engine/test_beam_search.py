"""Beam search finds what transformers finds, alone and in a crowd, with sequences parting inside blocks and under pressure."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_ENGINE
from tests.tooling.engine_info import engine_info
from tests.tooling.golden import BeamCase, BeamGolden, load_beams
from tests.tooling.tiny_models import checksum, tiny_tensors
from xlaserve import LLM, AsyncLLM, BeamSearchParams, RequestOutput, SamplingParams
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.errors import InvalidRequestError

Tiny = Callable[[str], Path]
FAMILIES = ("llama3", "qwen3", "gemma3")
SCORE_TOLERANCE = 2e-4


def params(case: BeamCase) -> BeamSearchParams:
    options = case.options
    return BeamSearchParams(
        beam_width=options["num_beams"],
        max_tokens=options["max_new_tokens"],
        length_penalty=options["length_penalty"],
        early_stopping=options["early_stopping"],
    )


def check(case: BeamCase, eos_ids: tuple[int, ...], output: RequestOutput) -> None:
    assert output.finished
    assert [tuple(found.token_ids) for found in output.outputs] == list(case.tokens)
    for found, score in zip(output.outputs, case.scores, strict=True):
        assert found.cumulative_logprob is not None
        assert found.cumulative_logprob / len(found.token_ids) ** case.options["length_penalty"] == pytest.approx(
            score, rel=1e-5, abs=SCORE_TOLERANCE
        )
        assert found.finish_reason == ("stop" if found.token_ids[-1] in eos_ids else "length")


@pytest.fixture(scope="module")
def searching(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, BeamGolden]]:
    """The tiny checkpoint of a family with the end-of-sequence ids of its reference values."""

    def make(family: str) -> tuple[str, BeamGolden]:
        golden = load_beams(family)
        assert checksum(tiny_tensors(family)) == golden.checksum
        path = tmp_path_factory.mktemp("beams") / family
        shutil.copytree(tiny_model(family), path)
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(golden.eos_ids)}))
        return str(path), golden

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_are_those_of_transformers(family: str, searching: Callable[[str], tuple[str, BeamGolden]]) -> None:
    path, golden = searching(family)
    assert len({len(tokens) for case in golden.cases for tokens in case.tokens}) > 5, "some searches end early"
    with LLM(path, **TINY_ENGINE) as llm:
        for case in golden.cases:
            check(case, golden.eos_ids, llm.beam_search([list(case.prompt)], params(case))[0])
        stats = llm.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
        assert stats.compile_events == 0
        assert stats.generation_tokens == sum(len(tokens) for case in golden.cases for tokens in case.tokens)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("num_blocks", [129, 21])
def test_in_a_crowd_and_under_pressure(num_blocks: int, searching: Any, *, caching: bool) -> None:
    path, golden = searching("llama3")
    plain = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
    options = {**TINY_ENGINE, "num_blocks": num_blocks, "enable_prefix_caching": caching}
    with LLM(path, **options) as llm:
        prompts = [[7 + i + j for j in range(60 + 7 * i)] for i in range(10)]
        alone = [llm.generate([prompt], plain)[0].outputs[0].token_ids for prompt in prompts]
        cases = [case for case in golden.cases if case.options["num_beams"] * -(-(len(case.prompt) + 24) // 16) < num_blocks]
        assert len(cases) > len(golden.cases) / 2
        requests: list[tuple[list[int], Any]] = [(list(case.prompt), params(case)) for case in cases]
        for at, prompt in enumerate(prompts):
            requests.insert(2 * at, (prompt, plain))
        outputs = llm.generate([prompt for prompt, _ in requests], [each for _, each in requests])
        beams = [output for output, (_, each) in zip(outputs, requests, strict=True) if each is not plain]
        for case, output in zip(cases, beams, strict=True):
            check(case, golden.eos_ids, output)
        others = [output for output, (_, each) in zip(outputs, requests, strict=True) if each is plain]
        assert [output.outputs[0].token_ids for output in others] == alone
        stats = llm.stats()
        assert (stats.preemptions > 0) == (num_blocks == 21)
        assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)


def test_a_stream_gives_all_at_the_end_and_can_be_left(searching: Any) -> None:
    async def test() -> None:
        path, golden = searching("llama3")
        llm = await asyncio.to_thread(AsyncLLM, path, **TINY_ENGINE)
        case = golden.cases[0]
        outputs = [output async for output in llm.generate(list(case.prompt), params(case))]
        assert len(outputs) == 1
        check(case, golden.eos_ids, outputs[0])
        assert outputs[0].outputs[0].text
        long = BeamSearchParams(beam_width=4, max_tokens=150, ignore_eos=True)
        stream = llm.submit(list(case.prompt), long)
        while llm.stats().num_running < 4:
            await asyncio.sleep(0)
        stream.abort()
        # Whoever comes next finds everything free.
        async for output in llm.generate(list(case.prompt), params(case)):
            check(case, golden.eos_ids, output)
        while (stats := llm.stats()).num_running:
            await asyncio.sleep(0)
        assert stats.num_free_blocks == stats.num_blocks
        assert stats.finished["abort"] == 1
        await llm.close()

    asyncio.run(asyncio.wait_for(test(), 120))


@pytest.mark.parametrize(
    ("options", "field", "part"),
    [
        ({"beam_width": 0}, "beam_width", "between 1 and 16"),
        ({"beam_width": 17}, "beam_width", "between 1 and 16"),
        ({"beam_width": 9}, "beam_width", "at most 8 sequences at once"),
        ({"beam_width": 2, "length_penalty": float("nan")}, "length_penalty", "finite"),
        ({"beam_width": 2, "early_stopping": "always"}, "early_stopping", "never"),
        ({"beam_width": 2, "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"beam_width": 8, "max_tokens": None}, "beam_width", r"needs 128 KV blocks, and there are 48 of 16 tokens \(--num-blocks\)"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, Any], field: str, part: str) -> None:
    inputs = InputProcessor(None, engine_info(max_model_len=256, num_blocks=48), seed=0)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=part) as info:
        inputs.request([5, 6, 7], BeamSearchParams(**options), None)
    assert info.value.field == field
