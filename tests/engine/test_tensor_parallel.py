"""A model split over devices gives what it gives on one: tokens, log probabilities and searches, preempted, cached, put to sleep, loaded.

The devices are JAX's CPU devices, of which tests/conftest.py asks for four.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from math import prod
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.engine.test_equality_matrix import PARAMS, TOLERANCE, Plain, Tally, Wish, prompts
from xlaserve import LLM, BeamSearchParams, SamplingParams
from xlaserve.buckets.compiler import workspace_of
from xlaserve.buckets.graphs import entry
from xlaserve.buckets.manifest import read_manifest
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.runner import Runner
from xlaserve.errors import ArtifactError, ConfigError
from xlaserve.platforms.mesh import AXIS, part_shape

Tiny = Callable[[str], Path]

SIZES: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 32, "num_blocks": 21}
"""320 tokens of KV for four sequences of up to 240: some will be preempted."""
TP = 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def split(tiny_model: Tiny, cache: Path) -> Generator[LLM]:
    with LLM(str(tiny_model("llama3")), device="cpu", tensor_parallel_size=TP, compile_cache=str(cache), **SIZES) as llm:
        yield llm


@pytest.fixture(scope="module")
def artifacts(split: LLM, cache: Path) -> Path:
    """What `split` has compiled."""
    [directory] = cache.iterdir()
    return directory


def runner_of(llm: LLM) -> Runner:
    runner = llm._core._runner
    assert isinstance(runner, Runner)
    return runner


def bytes_of_one(arrays: Any) -> int:
    """Bytes of what one device has of arrays."""
    return sum(prod(part_shape(array)) * array.dtype.itemsize for array in jax.tree.leaves(arrays))


def test_a_crowd_gets_what_it_gets_on_one_device(split: LLM, tiny_llm: LLM) -> None:
    """Greedy and drawn, penalties, log probabilities of outputs and prompts, by way of preemption and a warm prefix cache."""
    wishes = [Wish(prompt, each) for prompt, each in zip(prompts(len(PARAMS), seed=1), PARAMS.values(), strict=True)]
    everything = [wish.prompt for wish in wishes], [wish.params for wish in wishes]
    plain, tally = Plain(wishes, tiny_llm.generate(*everything)), Tally()
    for _ in range(2):
        tally.compare(split.generate(*everything), plain)
    stats = split.stats()
    assert stats.preemptions > 0
    assert stats.prefix_cache_hits > 0
    assert tally.sequences == 2 * sum(each.n for each in PARAMS.values())
    assert 0 < tally.difference < TOLERANCE, "sums over devices are not the sums of one"


def test_beams_part_on_every_device(split: LLM, tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    copy = Runner.copy
    monkeypatch.setattr(Runner, "copy", lambda self, pairs: copied.append(len(pairs)) or copy(self, pairs))
    params = BeamSearchParams(beam_width=3, max_tokens=24)
    prompt = prompts(1, seed=9)[0][:40]
    found, plain = (llm.generate([prompt], params)[0].outputs for llm in (split, tiny_llm))
    assert [each.token_ids for each in found] == [each.token_ids for each in plain]
    assert copied


def test_each_device_has_its_share_and_the_plan_knows(split: LLM) -> None:
    plan, runner = split._engine.plan, runner_of(split)
    assert plan.limits.memory.kv == bytes_of_one(runner._kv)
    assert plan.limits.memory.weights == plan.weight_bytes == bytes_of_one(runner._params)
    heads = plan.model.num_kv_heads // TP
    for array in runner._kv:
        assert {shard.data.shape[-3] for shard in array.addressable_shards} == {heads}
        assert [shard.device for shard in array.addressable_shards] == plan.devices == jax.devices("cpu")[:TP]
    assert all(array.is_fully_replicated for array in runner._state)
    assert f"the model split over {TP} devices" in plan.describe()


def test_everything_donated_is_updated_in_place_on_every_device(split: LLM) -> None:
    """And what a graph needs besides is no more than was planned for one device."""
    spec = split._engine.plan.spec
    for bucket, graph in split._engine.graphs.items():
        if bucket.name != "blank":
            made = entry(spec, bucket)
            assert isinstance(graph.run, jax.stages.Compiled)
            donated = bytes_of_one([made.arguments[at] for at in made.donated])
            assert graph.run.memory_analysis().alias_size_in_bytes == donated > 0, bucket.name
            needed = workspace_of(graph.memory)
            assert needed is not None
            assert needed <= split._engine.plan.limits.memory.workspace, bucket.name


def test_a_step_is_dispatched_by_the_fast_path(split: LLM) -> None:
    blocks = [(0, 0)]
    runner = runner_of(split)
    runner.copy(blocks)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        runner.copy(blocks)
    finally:
        sys.setprofile(None)
    assert "call" not in calls, calls


def test_sleep_gives_back_the_memory_of_every_device(split: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    prompt = prompts(1, seed=5)
    before = split.generate(prompt, params)[0].outputs[0].token_ids
    held = sum(shard.data.nbytes for array in (*runner_of(split)._kv, *runner_of(split)._state) for shard in array.addressable_shards)
    weights = sum(shard.data.nbytes for array in runner_of(split)._params for shard in array.addressable_shards)
    assert split.sleep(1) == held
    assert split.sleep(2) == weights
    split.wake()
    assert split.generate(prompt, params)[0].outputs[0].token_ids == before
    assert all(AXIS in array.sharding.spec for array in runner_of(split)._kv)  # type: ignore[attr-defined]


def test_artifacts_say_over_how_many_devices(split: LLM, artifacts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    """They bring their size along; for another they are a miss that names the field, in both directions."""
    manifest = read_manifest(artifacts)
    assert manifest is not None
    assert manifest.program["mesh"] == {"tp": TP}
    assert manifest.about["sizes"]["tensor_parallel_size"] == TP
    model, options = str(tiny_model("llama3")), {"artifacts": str(artifacts), "artifacts_only": True, "compile_cache": str(tmp_path)}
    with LLM(model, **options) as llm:
        assert llm._engine.plan.limits.tensor_parallel_size == TP
        assert {graph.source for graph in llm._engine.graphs.values()} == {"loaded"}
        params, prompt = SamplingParams(temperature=0.9, seed=4, max_tokens=12), prompts(1, seed=6)
        assert llm.generate(prompt, params)[0].outputs[0].token_ids == split.generate(prompt, params)[0].outputs[0].token_ids
    with pytest.raises(ArtifactError, match=r"forbids that: .*mesh\.tp: 1 here, 2 in the artifact"):
        LLM(model, **options, tensor_parallel_size=1)


def test_artifacts_of_one_device_are_a_miss_for_two(tiny_llm: LLM, tiny_model: Tiny, tmp_path: Path) -> None:
    [directory] = {store.directory for store in tiny_llm_stores(tiny_llm)}
    options = {"artifacts": str(directory), "artifacts_only": True, "compile_cache": str(tmp_path)}
    with pytest.raises(ArtifactError, match=r"forbids that: .*mesh\.tp: 2 here, 1 in the artifact"):
        LLM(str(tiny_model("llama3")), **options, tensor_parallel_size=2)


def tiny_llm_stores(llm: LLM) -> Any:
    from xlaserve.engine.build import open_stores

    plan = llm._engine.plan
    return open_stores(plan, EngineConfig(model=str(plan.checkpoint.path)), print).all


@pytest.mark.usefixtures("split")
def test_a_fresh_process_gets_its_devices_by_itself(cache: Path, tiny_model: Tiny) -> None:
    """Nothing but the flag is needed: the platform asks JAX's client for devices before it starts."""
    environ = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    flags = [text for name, value in SIZES.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "xlaserve", "compile", str(tiny_model("llama3")), "--device", "cpu", "-tp", str(TP)]
    done = subprocess.run(
        [*command, *flags, "--compile-cache", str(cache)], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("graphs are ready, 0 of them compiled now\n"), done.stdout
    assert "the model split over 2 devices" in done.stdout


def test_too_few_devices_are_refused_with_a_remedy(tiny_model: Tiny) -> None:
    have = len(jax.devices("cpu"))
    with pytest.raises(
        ConfigError,
        match=rf"tensor_parallel_size 64 needs 64 devices, and platform 'cpu' has {have} here\. .*set JAX_NUM_CPU_DEVICES=64 before Python "
        rf"starts\. Use --tensor-parallel-size {have} or less\.",
    ):
        LLM(str(tiny_model("llama3")), device="cpu", tensor_parallel_size=64, **SIZES)


def test_a_size_that_heads_do_not_divide_by_is_refused(tiny_model: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size 3 .* its 4 query heads cannot be split .* Sizes that work: 1, 2, 4\."):
        LLM(str(tiny_model("llama3")), device="cpu", tensor_parallel_size=3, **SIZES)
