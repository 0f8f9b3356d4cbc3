"""The device's memory: graphs need no more than was planned, and once an engine is ready nothing is added to it that stays."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import jax
import pytest

from xlaserve import LLM, SamplingParams
from xlaserve.buckets.compiler import workspace_of
from xlaserve.buckets.executable import memory
from xlaserve.buckets.graphs import lower
from xlaserve.buckets.ladder import BLANK, COPY, UPKEEP, ContextBucket, GenerateBucket
from xlaserve.buckets.workspace import workspace_bytes
from xlaserve.engine.build import plan_graphs
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.runner import Runner


def live_bytes() -> dict[int, int]:
    """Bytes of every array on the devices of this process, by the array's identity."""
    gc.collect()
    return {id(array): array.nbytes for array in jax.live_arrays()}


def test_every_graph_needs_less_than_was_planned(tiny_llm: LLM) -> None:
    engine = tiny_llm._engine
    memory = engine.plan.limits.memory
    needs = {bucket.name: workspace_of(graph.memory) for bucket, graph in engine.graphs.items() if bucket != BLANK}
    assert None not in needs.values()
    largest = max(need for need in needs.values() if need is not None)
    assert largest <= memory.workspace <= 8 * largest, "a bound that is far off wastes memory"


def test_the_plan_is_what_is_on_the_device(tiny_llm: LLM) -> None:
    memory, runner = tiny_llm._engine.plan.limits.memory, tiny_llm._core._runner
    assert isinstance(runner, Runner)
    assert sum(array.nbytes for array in runner._params) == memory.weights
    assert sum(array.nbytes for array in runner._kv) == memory.kv
    assert sum(array.nbytes for array in runner._state) <= memory.slots <= 1.1 * sum(array.nbytes for array in runner._state)


def test_nothing_stays_on_the_device_after_readiness(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storm of requests of every kind. While it lasts, what is on the device beside weights, KV and state are the batches and outputs of
    the iterations in flight; afterwards there is not one array more than before.
    """
    prompts = [[1 + (7 * i + j) % 300 for j in range(1 + 11 * i % 90)] for i in range(24)]
    params = [
        SamplingParams(
            max_tokens=4 + i % 9, temperature=i % 3 / 2, logprobs=i % 4 or None, repetition_penalty=1.1 if i % 5 == 0 else 1.0, n=1 + i % 2
        )
        for i in range(len(prompts))
    ]
    tiny_llm.generate(prompts[:2], params[:2])
    before = live_bytes()
    peak = 0
    run = Runner.run

    def watched(self: Runner, *arguments: Any) -> Any:
        nonlocal peak
        peak = max(peak, sum(live_bytes().values()))
        return run(self, *arguments)

    monkeypatch.setattr(Runner, "run", watched)
    tiny_llm.generate(prompts, params)
    after = live_bytes()
    assert peak > 0
    assert sum(after.values()) == sum(before.values())
    assert len(after) == len(before)
    plan, sizes = tiny_llm._engine.plan, tiny_llm._engine.plan.limits
    held = workspace_bytes(plan.model, 4, sizes.block_size, True, plan.ladder.buckets) - largest_temporary(plan)
    assert held > 0
    assert peak - sum(before.values()) <= held + sizes.memory.slots


def largest_temporary(plan: Any) -> int:
    """The bound without what is held by iterations in flight."""
    from xlaserve.buckets import workspace

    return max(workspace._temporary(plan.model, 4, plan.limits.block_size, True, bucket) for bucket in plan.ladder.buckets)


def test_short_types_are_widened_on_cpu_and_planned_for(tiny_llm: LLM) -> None:
    """XLA:CPU computes bfloat16 on float32 copies, of the weights and of the whole KV cache."""
    plan = tiny_llm._engine.plan
    spec = replace(plan.spec, dtype="bfloat16", num_blocks=400)
    block = plan.model.kv_bytes_per_token(2) * spec.block_size
    assert plan.platform.widens("bfloat16")
    weights = plan.weight_bytes // 2
    for bucket in (ContextBucket(1, 32, 16), GenerateBucket(2, 16), COPY):
        needed = workspace_of(memory(lower(spec, bucket, plan.devices).compile()))
        bound = workspace_bytes(plan.model, 2, spec.block_size, True, () if bucket in UPKEEP else (bucket,))  # type: ignore[arg-type]
        assert needed is not None
        assert needed <= bound + 2 * weights + 400 * 2 * block, bucket.name
    # How many of these copies a graph has differs between versions of XLA; there must be room for all.
    limits, *_ = plan_graphs(EngineConfig(dtype="bfloat16", block_size=spec.block_size, num_blocks=400), plan.model, plan.platform)
    assert limits.memory.wide_block == 2 * block
    assert limits.memory.workspace >= 2 * weights
