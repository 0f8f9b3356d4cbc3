"""The device's memory: graphs need no more than was planned, and once an engine is ready nothing is added to it that stays."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import jax
import pytest

from xlaserve import LLM, SamplingParams
from xlaserve.buckets.compiler import workspace_of
from xlaserve.buckets.executable import memory
from xlaserve.buckets.graphs import lower
from xlaserve.buckets.ladder import BLANK, COPY
from xlaserve.buckets.workspace import workspace_bytes
from xlaserve.engine.build import make_plan
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.runner import Runner
from xlaserve.kernels.library import absence, library
from xlaserve.platforms.mesh import part_shape
from xlaserve.platforms.platform import KernelsChoice


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


@pytest.mark.parametrize(
    ("family", "kernels", "shards"),
    [("llama3", "none", 1), ("llama3", "native", 1), ("llama3", "native", 2), ("qwen3_moe", "native", 1)],
)
def test_short_types_are_widened_on_cpu_and_planned_for(
    family: str, kernels: KernelsChoice, shards: int, tiny_model: Callable[[str], Path]
) -> None:
    """XLA:CPU computes bfloat16 on float32 copies, of weights and of the whole KV cache. With kernels it has little left to compute: the
    products of experts, and those that devices add up.
    """
    if kernels == "native" and library() is None:
        pytest.skip(str(absence()))
    sizes: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 64, "num_blocks": 400}
    path = str(tiny_model(family))
    plan = make_plan(EngineConfig(model=path, device="cpu", dtype="bfloat16", kernels=kernels, tensor_parallel_size=shards, **sizes))
    spec, planned = plan.spec, plan.limits.memory
    assert plan.platform.widens("bfloat16")
    # How many of these copies a graph has differs between versions of XLA; there must be room for all, and for no more.
    native = kernels == "native"
    assert planned.wide_block == (0 if native else 2 * planned.block)
    left = [
        name
        for name in spec.parameters()
        if not native or ".experts." in name or (shards > 1 and re.search(r"(o|down)_proj\.weight", name))
    ]
    copied = sum(prod(part_shape(spec.parameters()[name])) * 2 for name in left)
    assert (copied < planned.weights, bool(left)) == (native, not native or family == "qwen3_moe" or shards > 1)
    beside = workspace_bytes(spec.share, 2, spec.block_size, True, plan.ladder.buckets, plan.platform.experts, native)
    assert planned.workspace == beside + 2 * copied
    for bucket in (plan.ladder.context[-1], plan.ladder.generate[0], COPY):
        needed = workspace_of(memory(lower(spec, bucket, plan.devices).compile()))
        assert needed is not None
        assert needed <= planned.peak_workspace, bucket.name
