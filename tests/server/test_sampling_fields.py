"""Request fields reach the engine as `SamplingParams`; what is left open comes from the checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live
from tests.server.scripted_engine import ScriptedEngine
from xlaserve.sampling.beam_search import BeamSearchParams, GenerationParams
from xlaserve.sampling.params import SamplingParams

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT_TOKENS = len("<user>hi<assistant>")


def submitted(server: Live, engine: ScriptedEngine, **fields: Any) -> GenerationParams:
    path, prompt = ("/v1/completions", {}) if "prompt" in fields else (CHAT, {"messages": MESSAGES})
    response = server.client.post(path, json={**prompt, **fields})
    assert response.status_code == 200, response.text
    return engine.submitted[-1].params


def test_every_field(server: Live, engine: ScriptedEngine) -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.25,
        "logit_bias": {"7": 1.5, "9": -100},
        "allowed_token_ids": [7, 9, 11],
        "bad_words": ["no", "not that"],
        "seed": -3,
        "stop": ["x", "y"],
        "stop_token_ids": [4, 5],
        "max_tokens": 9,
        "min_tokens": 2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "priority": -3,
        "cache_salt": "mine",
    }
    assert submitted(server, engine, **fields) == SamplingParams(**fields)


def test_every_field_of_a_search(server: Live, engine: ScriptedEngine) -> None:
    fields: dict[str, Any] = {
        "length_penalty": 0.5,
        "early_stopping": "never",
        "max_tokens": 9,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "priority": -3,
        "cache_salt": "mine",
    }
    # What samples is not for a search, and is sent all the same.
    extra = {"use_beam_search": True, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    assert submitted(server, engine, n=3, **fields, **extra) == BeamSearchParams(beam_width=3, **fields)
    assert submitted(server, engine, prompt="a", use_beam_search=True) == BeamSearchParams(beam_width=1, max_tokens=16)


def test_logprobs_have_a_name_for_each_endpoint(server: Live, engine: ScriptedEngine) -> None:
    assert submitted(server, engine, logprobs=True).logprobs == 0
    assert submitted(server, engine, logprobs=True, top_logprobs=4).logprobs == 4
    assert submitted(server, engine, logprobs=False, top_logprobs=0).logprobs is None
    assert submitted(server, engine, prompt="a", logprobs=4).logprobs == 4
    assert submitted(server, engine, prompt="a", logprobs=0).logprobs == 0
    assert submitted(server, engine, prompt="a", logprobs=False).logprobs is None


def test_defaults(server: Live, engine: ScriptedEngine) -> None:
    assert submitted(server, engine) == SamplingParams(max_tokens=128 - PROMPT_TOKENS)
    assert submitted(server, engine, prompt="hello") == SamplingParams(max_tokens=16)
    assert submitted(server, engine, prompt="a" * 120) == SamplingParams(max_tokens=8)


def test_defaults_of_the_checkpoint(server: Live, engine: ScriptedEngine) -> None:
    engine.default_sampling = {"temperature": 0.2, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    expected = SamplingParams(temperature=0.2, top_p=0.9, top_k=20, repetition_penalty=1.1, max_tokens=5)
    assert submitted(server, engine, max_tokens=5) == expected
    chosen = submitted(server, engine, temperature=1, top_p=1.0, top_k=0, repetition_penalty=1, max_tokens=7)
    assert chosen == SamplingParams(temperature=1, max_tokens=7)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_completion_tokens": 3}, 3),
        ({"max_completion_tokens": 3, "max_tokens": 9}, 3),
        ({"max_tokens": 9, "max_completion_tokens": None}, 9),
    ],
)
def test_max_completion_tokens_comes_first(server: Live, engine: ScriptedEngine, fields: dict[str, Any], tokens: int) -> None:
    assert submitted(server, engine, **fields).max_tokens == tokens


def test_top_k_beyond_the_vocabulary_keeps_all(server: Live, engine: ScriptedEngine) -> None:
    assert submitted(server, engine, top_k=2**63).top_k == 0
    assert submitted(server, engine, top_k=257).top_k == 257


def test_null_means_the_default(server: Live, engine: ScriptedEngine) -> None:
    nulls = dict.fromkeys(("n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "stream", "model", "logit_bias"))
    assert submitted(server, engine, **nulls) == SamplingParams(max_tokens=128 - PROMPT_TOKENS)
