"""What the lint takes for granted of batches, real batches keep: every number that an engine sends is in the contract's interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY_ENGINE
from xlaserve import LLM, SamplingParams
from xlaserve.buckets.ladder import SEAT, Bucket
from xlaserve.buckets.lint.contract import contract
from xlaserve.engine import runner as runner_module
from xlaserve.engine.batch import empty_batch
from xlaserve.sampling.structured import StructuredOutput


def test_batches_keep_it(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Bucket, Any, Any]] = []
    seated: list[Any] = []
    run, seat = runner_module.Runner.run, runner_module.Runner.seat

    def noted(self: Any, bucket: Bucket, batch: Any, mask: Any = None) -> Any:
        seen.append((bucket, batch.copy(), self))
        return run(self, bucket, batch, mask)

    def noted_seat(self: Any, sequence: Any) -> None:
        seated.append(runner_module.seating(sequence, self._vocab_size))
        seat(self, sequence)

    monkeypatch.setattr(runner_module.Runner, "run", noted)
    monkeypatch.setattr(runner_module.Runner, "seat", noted_seat)
    with LLM(str(tiny_model("llama3")), **TINY_ENGINE) as llm:
        spec = llm._engine.plan.spec  # pyright: ignore[reportPrivateUsage]
        prompts = [list(range(2, 2 + n)) for n in (1, 17, 100, 200)]
        kinds = [
            SamplingParams(max_tokens=20, temperature=0.8, seed=1, logprobs=3, prompt_logprobs=2),
            SamplingParams(max_tokens=40, min_tokens=10, repetition_penalty=1.2, stop_token_ids=[spec.model.vocab_size - 1]),
            SamplingParams(max_tokens=30, temperature=1, seed=2, structured=StructuredOutput(json_object=True)),
            SamplingParams(max_tokens=30, bad_words=["a"], logit_bias={spec.model.vocab_size - 1: 3.0}),
        ]
        for params in kinds:
            llm.generate(prompts, params)
    assert {type(bucket).__name__ for bucket, _, _ in seen} == {"ContextBucket", "GenerateBucket"}
    assert seated
    for bucket, batch, _ in [*seen, *((bucket, empty_batch(bucket, spec.max_num_seqs), None) for bucket, _, _ in seen)]:
        allowed = contract(spec, bucket)["batch"]
        assert np.all((allowed.low <= batch) & (batch <= allowed.high)), bucket
    promised = contract(spec, SEAT)
    for rows in seated:
        assert promised["slot"].low <= rows.slot <= promised["slot"].high
        assert np.all((promised["state.words"].low <= rows.words) & (rows.words <= promised["state.words"].high))
        assert np.all((promised["state.recent"].low <= rows.recent) & (rows.recent <= promised["state.recent"].high))
