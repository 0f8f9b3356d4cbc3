"""Messages between processes: what arrives is what was sent, in whatever pieces, and errors keep their type."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.tooling.engine_info import engine_info
from xlaserve import errors
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.framing import FrameReader, FrameWriter
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.engine.messages import (
    Add,
    Call,
    EngineInfo,
    Failed,
    Finish,
    FromEngine,
    Progress,
    Ready,
    Reply,
    Start,
    Step,
    ToEngine,
    TokenEvent,
)
from xlaserve.engine.outputs import EngineStats, RequestMetrics
from xlaserve.engine.sequence import Sequence
from xlaserve.errors import CheckpointError, ConfigError, EngineDeadError, UnsupportedModelError
from xlaserve.sampling.params import SamplingParams
from xlaserve.sampling.scores import TokenScore

METRICS = RequestMetrics(1.0, 2.0, None, None, 3)
SCORES = [TokenScore(5, -0.25, 1), TokenScore(6, -1e30, 512)]
STATS = EngineStats(num_running=2, num_blocks=9, finished={"stop": 4})
TO_ENGINE: list[Any] = [
    Start(EngineConfig(model="m", max_model_len=64, dtype="bfloat16"), 20, None),
    Start(EngineConfig(), 10, "/a:/b"),
    Finish(2**40, "stop", "日本"),
    Finish(0, "abort"),
    Call(7, "pause", {"mode": "keep"}),
    Call(8, "trace", {}),
]
FROM_ENGINE: list[Any] = [
    Progress("a line — with 🎈"),
    Ready(EngineInfo("name", "/models/m", 64, 512, (1, 2), 8, 16, 100, {"temperature": 0.6, "top_k": 5}, "a\nplan")),
    Step([TokenEvent(1, 5), TokenEvent(2, None, "error"), TokenEvent(3, 7, "stop", 7, SCORES, METRICS, 48)], 3, 4, 70, 80, STATS),
    Step([], 0, 0, 0, 0, None),
    Failed("ConfigError", "no"),
    Reply(7),
    Reply(2**40, [1, "a", None]),
    Reply(8, error=Failed("EngineStateError", "asleep")),
]


def received(kind: Any, data: bytes) -> list[Any]:
    return FrameReader[Any](kind).feed(data)


@pytest.mark.parametrize(("kind", "messages"), [(ToEngine, TO_ENGINE), (FromEngine, FROM_ENGINE)])
def test_messages_arrive_as_they_were_sent_in_any_pieces(kind: Any, messages: list[Any]) -> None:
    writer, reader, rng = FrameWriter(), FrameReader[Any](kind), random.Random(0)
    sent = [rng.choice(messages) for _ in range(200)]
    stream = b"".join(writer.frame(message) for message in sent)
    arrived: list[Any] = []
    while stream:
        size = rng.choice((1, 2, 3, 10, 100, 1000))
        arrived += reader.feed(stream[:size])
        stream = stream[size:]
    assert arrived == sent


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"max_tokens": 10**40, "seed": -(2**63)},
        {
            "n": 3,
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.9,
            "min_p": 0.1,
            "seed": 2**63 - 1,
            "stop": ["x", "日本"],
            "stop_token_ids": [4],
        },
        {"max_tokens": None, "min_tokens": 20, "ignore_eos": True, "detokenize": False},
        {"logit_bias": {5: -100, 6: 0.5}, "allowed_token_ids": [5, 6, 7], "logprobs": 3, "cache_salt": "salt", "repetition_penalty": 1.5},
        {"max_tokens": 20, "min_tokens": 20, "include_stop_str_in_output": True, "skip_special_tokens": False},
    ],
)
def test_a_request_arrives_whole(params: dict[str, Any]) -> None:
    inputs = InputProcessor(None, engine_info(eos_ids=(1, 2)), seed=0)  # type: ignore[arg-type]
    request = inputs.request(list(range(3, 300)), SamplingParams(**params), "name")
    (message,) = received(ToEngine, FrameWriter().frame(Add.of(request)))
    there = message.sequences()
    assert [sequence.key for sequence in there] == request.keys
    names = [name for name in Sequence.__dataclass_fields__ if name not in ("params", "leader")]
    for ours, theirs in zip(request.sequences, there, strict=True):
        assert [getattr(theirs, name) for name in names] == [getattr(ours, name) for name in names]
        assert theirs.leader is (None if theirs.index == 0 else there[0])
        assert theirs.prompt_ids is there[0].prompt_ids
        assert theirs.metrics is there[0].metrics
        for name in SamplingParams.__dataclass_fields__:
            assert name == "max_tokens" or getattr(theirs.params, name) == getattr(ours.params, name)


def test_keys_are_never_given_twice() -> None:
    inputs = InputProcessor(None, engine_info(max_model_len=64, eos_ids=()), seed=0)  # type: ignore[arg-type]
    keys = [key for _ in range(50) for key in inputs.request([5], SamplingParams(n=3), "same").keys]
    assert len(set(keys)) == 150


@pytest.mark.parametrize("error", [ConfigError("a"), CheckpointError("b"), UnsupportedModelError("c"), EngineDeadError("d")])
def test_errors_keep_their_type(error: errors.XlaserveError) -> None:
    (message,) = received(FromEngine, FrameWriter().frame(Failed.of(error)))
    assert type(message.error()) is type(error)
    assert str(message.error()) == str(error)


def test_a_bug_arrives_as_a_dead_engine() -> None:
    error = Failed.of(ZeroDivisionError("by zero")).error()
    assert isinstance(error, EngineDeadError)
    assert "ZeroDivisionError: by zero" in str(error)
