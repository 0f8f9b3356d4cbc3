"""A mixture of experts in the engine: what a request gives depends neither on its company nor on how it is computed; memory as planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import TINY_ENGINE
from tests.engine.test_equality_matrix import LENGTH, PARAMS, SMALL, Plain, Tally, Wish, prompts
from tests.tooling.tiny_models import tiny_config
from xlaserve import LLM
from xlaserve.buckets.compiler import workspace_of
from xlaserve.buckets.executable import memory
from xlaserve.buckets.graphs import lower
from xlaserve.buckets.ladder import ContextBucket, GenerateBucket
from xlaserve.buckets.workspace import workspace_bytes
from xlaserve.engine import build
from xlaserve.engine.build import make_plan
from xlaserve.engine.config import EngineConfig
from xlaserve.errors import CheckpointError, ConfigError
from xlaserve.models.config import Experts
from xlaserve.models.experts import route
from xlaserve.models.registry import model_config
from xlaserve.platforms.platform import ExpertsKind

Tiny = Callable[[str], Path]


def test_company_changes_nothing(tiny_model: Tiny) -> None:
    """Alone and in whole prompts, or in a crowd, in chunks, preempted and from the prefix cache."""
    wishes = [Wish(prompt, each) for prompt, each in zip(prompts(len(PARAMS), seed=1), PARAMS.values(), strict=True)]
    model, tally = str(tiny_model("qwen3_moe")), Tally()
    with LLM(model, **{**TINY_ENGINE, "max_num_batched_tokens": LENGTH, "enable_prefix_caching": False}) as llm:
        plain = Plain(wishes, [llm.generate([wish.prompt], wish.params)[0] for wish in wishes])
    with LLM(model, **{**TINY_ENGINE, "max_num_batched_tokens": 32, "num_blocks": SMALL}) as llm:
        for _ in range(2):
            tally.compare(llm.generate([wish.prompt for wish in wishes], [wish.params for wish in wishes]), plain)
        stats = llm.stats()
    assert stats.preemptions > 0
    assert stats.prefix_cache_hits > 0
    assert tally.sequences == 2 * sum(each.n for each in PARAMS.values())


@pytest.mark.parametrize("kind", ["chosen", "all"])
def test_memory_is_planned(kind: ExpertsKind, tiny_model: Tiny) -> None:
    plan = make_plan(EngineConfig(model=str(tiny_model("qwen3_moe")), **TINY_ENGINE))
    spec = replace(plan.spec, experts=kind)
    for bucket in (ContextBucket(1, 64, 16), GenerateBucket(1, 16)):
        needed = workspace_of(memory(lower(spec, bucket, plan.devices).compile()))
        assert needed is not None
        assert needed <= workspace_bytes(plan.model, 4, spec.block_size, True, (bucket,), kind)


def test_weights_of_8_bits_are_refused_before_any_is_read(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_weights", lambda *_args, **_options: pytest.fail("nothing is to be loaded"))
    config = EngineConfig(model=str(tiny_model("qwen3_moe")), quantization="int8", **TINY_ENGINE)
    with pytest.raises(ConfigError, match=r"'int8' is not for a mixture of experts, which qwen3_moe is: .*Leave out --quantization"):
        build.build(config, lambda _line: None)


@pytest.mark.parametrize("normalized", [True, False])
def test_probabilities_of_the_chosen(*, normalized: bool) -> None:
    logits = np.array([[0.0, 2.0, 1.0, -1.0], [3.0, 0.5, 0.0, 2.5]], np.float32)
    chosen, weights = route(jnp.asarray(logits), Experts(4, 2, 8, normalized), "sort")
    assert np.asarray(chosen).tolist() == [[1, 2], [0, 3]]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.take_along_axis(expected, np.asarray(chosen), axis=1)
    expected = expected / expected.sum(axis=1, keepdims=True) if normalized else expected
    assert np.abs(np.asarray(weights) - expected).max() < 1e-6


def test_configurations(tiny_model: Tiny) -> None:
    raw = tiny_config("qwen3_moe")
    config = model_config(raw)
    assert (config.family, config.dense_layers) == ("qwen3_moe", (0, 2, 3, 4))
    assert config.experts == Experts(12, 3, 48, normalized=True)
    shared: dict[str, Any] = {key: raw[key] for key in raw if key not in ("decoder_sparse_step", "mlp_only_layers", "norm_topk_prob")}
    every = model_config(shared)
    assert every.dense_layers == ()
    assert every.experts is not None
    assert not every.experts.normalized
    assert replace(every, intermediate_size=161).unsplit(2) is None, "there is no layer of that width"
    with pytest.raises(CheckpointError, match="num_experts_per_tok is 13, of 12 experts"):
        model_config(raw | {"num_experts_per_tok": 13})
    with pytest.raises(CheckpointError, match="moe_intermediate_size is missing"):
        model_config({key: value for key, value in raw.items() if key != "moe_intermediate_size"})
    assert replace(config, num_heads=32, num_kv_heads=32, experts=Experts(12, 3, 50, normalized=True)).unsplit(4) == "expert width of 50"
    with pytest.raises(ConfigError, match="cannot be split over 3"):
        make_plan(EngineConfig(model=str(tiny_model("qwen3_moe")), device="cpu", tensor_parallel_size=3, **TINY_ENGINE))
