"""An engine with weights of 8 bits: what it computes, what it plans, what its artifacts say, and where it refuses."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_equality_matrix import prompts
from xlaserve import LLM, SamplingParams
from xlaserve.buckets.compiler import workspace_of
from xlaserve.cli import main
from xlaserve.engine import build
from xlaserve.engine.build import Plan, make_plan
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.runner import Runner
from xlaserve.errors import ArtifactError, ConfigError
from xlaserve.platforms.registry import platforms

Tiny = Callable[[str], Path]

SIZES: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 3, "max_num_batched_tokens": 32, "num_blocks": 13}
"""192 tokens of KV for three sequences of up to 110: some will be preempted."""


@pytest.fixture(scope="module")
def model(tiny_model: Tiny) -> str:
    return str(tiny_model("llama3"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8")


@pytest.fixture(scope="module")
def quantized(model: str, cache: Path) -> Generator[LLM]:
    with LLM(model, device="cpu", quantization="int8", compile_cache=str(cache), **SIZES) as llm:
        yield llm


def tokens(llm: LLM, wanted: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    return [list(result.outputs[0].token_ids) for result in llm.generate(wanted, params)]


def test_a_crowd_gets_what_each_gets_alone(quantized: LLM) -> None:
    """In chunks and in batches, preempted and from the prefix cache, greedy and drawn."""
    wanted = [prompt[:50] for prompt in prompts(6, seed=3)]
    params = [SamplingParams(temperature=0.7 * (i % 2), seed=i, max_tokens=60, ignore_eos=True) for i in range(6)]
    alone = [tokens(quantized, [prompt], [each])[0] for prompt, each in zip(wanted, params, strict=True)]
    assert quantized.stats().preemptions == 0
    for _ in range(2):
        assert tokens(quantized, wanted, params) == alone
    assert quantized.stats().preemptions > 0
    assert quantized.stats().prefix_cache_hits > 0


def matrices(plan: Plan) -> set[tuple[str, int]]:
    """Types and dimensions of weights: with kernels, those of layers are in a pack, and the embeddings in panels of four dimensions."""
    return {("int8", 1), ("int8", 4)} if plan.platform.cpu_kernels else {("int8", 2)}


def test_the_plan_is_what_is_on_the_device(quantized: LLM) -> None:
    plan, runner = quantized._engine.plan, quantized._core._runner
    assert isinstance(runner, Runner)
    assert plan.weight_bytes == plan.limits.memory.weights == sum(array.nbytes for array in runner._params)
    kinds = {(str(array.dtype), array.ndim) for array in runner._params}
    assert kinds == {*matrices(plan), ("float32", 1)}, "weights, and their scales and norms"
    assert plan.weight_bytes < 0.4 * make_plan(EngineConfig(model=plan.checkpoint.path, device="cpu", **SIZES)).weight_bytes  # type: ignore[arg-type]
    assert "int8 weights, float32)" in plan.describe()
    assert plan.info().quantization == "int8"
    for bucket, graph in quantized._engine.graphs.items():
        needed = workspace_of(graph.memory)
        if bucket.name != "blank":
            assert needed is not None
            assert needed <= plan.limits.memory.workspace, bucket.name


def test_sleep_and_wake(quantized: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=8)]
    before = tokens(quantized, prompts(1, seed=5), params)
    assert quantized.sleep(2) > 0
    quantized.wake()
    assert tokens(quantized, prompts(1, seed=5), params) == before


def test_artifacts_bring_it_along(quantized: LLM, model: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They load exactly, whether the flag is given again or not; without it in the artifacts, or in none, the reason is named."""
    [directory] = cache.iterdir()
    options: dict[str, Any] = {"artifacts": str(directory), "artifacts_only": True, "compile_cache": str(tmp_path)}
    with LLM(model, **options) as llm:
        assert llm._engine.plan.spec.quantization == "int8"
        assert {graph.source for graph in llm._engine.graphs.values()} == {"loaded"}
        params = [SamplingParams(temperature=0.9, seed=4, max_tokens=12)]
        assert tokens(llm, prompts(1, seed=6), params) == tokens(quantized, prompts(1, seed=6), params)
    assert main(["artifacts", "show", str(directory)]) == 0
    assert "  quantization               int8\n" in capsys.readouterr().out


def test_artifacts_without_it_are_a_miss_that_names_it(model: str, tmp_path: Path) -> None:
    plain = EngineConfig(model=model, device="cpu", **SIZES)
    plan = make_plan(plain)
    build.open_stores(plan, plain, print, tmp_path / "a").cache.save("copy", stablehlo=b"any")
    with pytest.raises(ArtifactError, match=r"forbids that: .*quantization: int8 here, nothing in the artifact"):
        LLM(model, artifacts=str(tmp_path / "a"), artifacts_only=True, compile_cache=str(tmp_path), quantization="int8")


def test_activations_of_16_bits(model: str, tmp_path: Path) -> None:
    """The dtype goes on to say what is not quantized."""
    sizes = SIZES | {"max_model_len": 32, "max_num_seqs": 1, "max_num_batched_tokens": 16}
    with LLM(model, device="cpu", quantization="int8", dtype="bfloat16", compile_cache=str(tmp_path), **sizes) as llm:
        runner = llm._core._runner
        assert isinstance(runner, Runner)
        assert {str(array.dtype) for array in runner._kv} == {"bfloat16"}
        assert {(str(array.dtype), array.ndim) for array in runner._params} == {
            *matrices(llm._engine.plan),
            ("float32", 1),
            ("bfloat16", 1),
        }
        assert len(tokens(llm, [[1, 2, 3]], [SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)])[0]) == 4
        for bucket, graph in llm._engine.graphs.items():
            needed = workspace_of(graph.memory)
            if bucket.name != "blank":
                assert needed is not None
                assert needed <= llm._engine.plan.limits.memory.peak_workspace, bucket.name


@pytest.mark.parametrize("name", ["cuda", "neuron"])
def test_other_platforms_refuse_it_before_anything_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "select_platform", lambda *_wanted: platforms()[name])
    monkeypatch.setattr(build, "open_checkpoint", lambda *_asked: pytest.fail("nothing is to be opened"))
    with pytest.raises(
        ConfigError,
        match=rf"quantization 'int8' is not for the platform {name}, which has none so far: leave out --quantization, or use --device cpu",
    ):
        make_plan(EngineConfig(model="m", device=name, quantization="int8"))


@pytest.mark.parametrize("value", ["int4", "", 8, True])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"quantization must be int8, or left out, got"):
        EngineConfig(quantization=value)
