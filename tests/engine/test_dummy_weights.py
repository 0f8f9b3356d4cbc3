"""An engine on dummy weights: it says so, works without a tokenizer, sleeps and wakes to the same weights, and is planned without any."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_ENGINE
from tests.tooling.tiny_models import tiny_config
from xlaserve import LLM, SamplingParams, StructuredOutput
from xlaserve.engine.build import make_plan
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.engine_process import start_engine
from xlaserve.errors import ConfigError
from xlaserve.platforms.cpu import CPU, CPUPlatform

SIZES: dict[str, Any] = {**TINY_ENGINE, "max_num_seqs": 2, "max_num_batched_tokens": 32, "max_model_len": 128, "load_format": "dummy"}
PROMPTS = [[9 + i for i in range(40)], [300, 7, 11]]
DRAWN = SamplingParams(temperature=1.0, seed=5, max_tokens=20, logprobs=1)


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with nothing but a configuration, which names no end of sequence."""
    directory = tmp_path_factory.mktemp("configured")
    config = {key: value for key, value in tiny_config("llama3").items() if key != "eos_token_id"}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.fixture(scope="module")
def tokens(configured: str) -> list[list[int]]:
    """What the prompts give; the first use of the engine that the other tests load."""
    with LLM(configured, **SIZES) as llm:
        before = llm.generate(PROMPTS, DRAWN)
        assert all(len(set(output.outputs[0].token_ids)) > 5 for output in before), "logits vary"
        assert all(-12 < place.logprob < -0.5 for output in before for place in likely(output)), "and are no extremes"
        assert all(output.outputs[0].text for output in before)
        llm.sleep(2)
        llm.wake()
        after = llm.generate(PROMPTS, DRAWN)
        assert [o.outputs[0].token_ids for o in after] == [o.outputs[0].token_ids for o in before]
        assert llm.stats().compile_events == 0
        assert llm.chat([{"role": "user", "content": "Hi"}], DRAWN)[0].outputs[0].text
    return [output.outputs[0].token_ids for output in before]


def likely(output: Any) -> list[Any]:
    return [entry for place in output.outputs[0].logprobs for entry in place.values()]


def test_weights_of_8_bits(configured: str) -> None:
    with LLM(configured, device="cpu", quantization="int8", **SIZES) as llm:
        outputs = llm.generate(PROMPTS, DRAWN)
        assert "of dummy weights, int8 weights, float32)" in llm.info.plan
    assert all(len(set(output.outputs[0].token_ids)) > 5 for output in outputs), "logits vary"
    assert all(-12 < place.logprob < -0.5 for output in outputs for place in likely(output)), "and are no extremes"


def test_it_is_the_same_model_over_devices(configured: str, tokens: list[list[int]]) -> None:
    with LLM(configured, device="cpu", tensor_parallel_size=2, **SIZES) as llm:
        assert [output.outputs[0].token_ids for output in llm.generate(PROMPTS, DRAWN)] == tokens


def test_the_server_s_side_finds_the_tokenizer(configured: str, tokens: list[list[int]]) -> None:
    """In the engine's process, the server's, and the one that tries grammars."""
    lines: list[str] = []

    async def test() -> None:
        engine = await start_engine(EngineConfig(model=configured, **SIZES), lines.append)
        try:
            assert engine.info.load_format == "dummy"
            assert [await whole(engine.submit(prompt, DRAWN)) for prompt in PROMPTS] == tokens
            form = replace(DRAWN, structured=StructuredOutput(regex="[ab]{3} (300|12)"), logprobs=None)
            await engine.check(form.structured)
            text = engine.tokenizer.decode(await whole(engine.submit("Say", form)))
            assert text[:4].strip("ab") == " "
            assert text[4:] in ("300", "12")
        finally:
            await engine.close()

    asyncio.run(test())
    assert any(line.startswith("model ") and "MiB of dummy weights" in line for line in lines)
    assert sum("loaded in" in line for line in lines) == sum(line.startswith("graph ") for line in lines), "graphs depend on no weights"


async def whole(stream: Any) -> list[int]:
    return [token async for output in stream for completion in output.outputs for token in completion.token_ids]


def test_graphs_are_those_of_the_weights_read(tiny_model: Any) -> None:
    read, dummy = (make_plan(EngineConfig(model=str(tiny_model("llama3")), **SIZES | {"load_format": how})) for how in ("auto", "dummy"))
    assert read.spec == dummy.spec
    assert ("dummy" in read.describe(), "dummy" in dummy.describe()) == (False, True)


def test_a_large_model_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(model="llama-3.1-8b", load_format="dummy", device="cpu", max_model_len=4096)
    monkeypatch.setattr(CPUPlatform, "memory", lambda _self: 24 << 30)
    with pytest.raises(ConfigError, match="weights 30,633 MiB"):
        make_plan(config)
    monkeypatch.setattr(CPUPlatform, "memory", lambda _self: 64 << 30)
    plan = make_plan(config, CPU)
    assert "llama-3.1-8b (llama, 32 layers, 30,633 MiB of dummy weights, float32)" in plan.describe()
    assert plan.info().eos_ids == ()


def test_another_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load_format must be one of auto, dummy, got 'gguf'"):
        EngineConfig(model=str(tmp_path), load_format="gguf")  # type: ignore[arg-type]
