"""Evaluation harnesses: what lm-eval's `local-completions` sends, and what it makes of the answers, on a real engine.

Its requests and its reading of answers are written down here from its TemplateAPI and OpenAICompletionsAPI; it is not installed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_ENGINE
from tests.server.live import Live, live_server
from xlaserve import AsyncLLM

COMPLETIONS = "/v1/completions"
TOLERANCE = 1e-4
TEXTS = ["the quick brown fox", "jumps over it, hello there", "x", "another one of these prompts, which is a little longer than the others"]


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[[str], Path]) -> Generator[Live]:
    engine = AsyncLLM(str(tiny_model("llama3")), **TINY_ENGINE)
    try:
        with live_server(engine) as live:
            yield live
    finally:
        asyncio.run(engine.close())


def tokens(live: Live, text: str, *, special: bool = True) -> list[int]:
    return live.client.post("/tokenize", json={"prompt": text, "add_special_tokens": special}).json()["tokens"]


def post(live: Live, **body: Any) -> dict[str, Any]:
    response = live.client.post(COMPLETIONS, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def loglikelihoods(live: Live, prompts: list[list[int]], contexts: list[int]) -> list[tuple[float, bool]]:
    """lm-eval's request for log likelihoods, and its `parse_logprobs`."""
    answer = post(live, prompt=prompts, model=None, max_tokens=1, logprobs=1, seed=1234, echo=True, temperature=0)
    result: list[tuple[float, bool]] = []
    for choice, context in zip(sorted(answer["choices"], key=itemgetter("index")), contexts, strict=True):
        logprobs = choice["logprobs"]
        total = sum(logprobs["token_logprobs"][context:-1])
        greedy = all(
            token == max(top, key=top.get)
            for token, top in zip(logprobs["tokens"][context:-1], logprobs["top_logprobs"][context:-1], strict=True)
        )
        result.append((total, greedy))
    return result


def test_loglikelihood_is_that_of_generating_the_continuation(tiny: Live) -> None:
    prompts = [tokens(tiny, text) for text in TEXTS]
    answers: list[list[int]] = []
    expected: list[float] = []
    for prompt in prompts:
        (choice,) = post(tiny, prompt=prompt, temperature=0, max_tokens=6, ignore_eos=True, logprobs=0, return_token_ids=True)["choices"]
        answers.append(choice["token_ids"])
        expected.append(sum(choice["logprobs"]["token_logprobs"]))
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    found = loglikelihoods(tiny, whole, [len(prompt) for prompt in prompts])
    assert [greedy for _, greedy in found] == [True] * len(prompts)
    assert all(math.isclose(total, value, abs_tol=TOLERANCE) for (total, _), value in zip(found, expected, strict=True))
    # Another last token is less likely, and not what a greedy model would say.
    worse = loglikelihoods(tiny, [[*ids[:-1], (ids[-1] + 1) % 500] for ids in whole], [len(prompt) for prompt in prompts])
    assert [greedy for _, greedy in worse] == [False] * len(prompts)
    assert all(low < high for (low, _), (high, _) in zip(worse, found, strict=True))


def test_a_batch_scores_as_its_prompts_alone_and_scoring_only_as_with_a_token(tiny: Live) -> None:
    prompts = [tokens(tiny, text) for text in TEXTS]
    batch = post(tiny, prompt=prompts, max_tokens=1, logprobs=3, echo=True, temperature=0)
    only = post(tiny, prompt=prompts, max_tokens=0, logprobs=3, echo=True)
    assert only["usage"]["completion_tokens"] == 0
    assert only["usage"]["prompt_tokens"] == sum(map(len, prompts)) == batch["usage"]["prompt_tokens"]
    for number, prompt in enumerate(prompts):
        alone = post(tiny, prompt=prompt, max_tokens=0, logprobs=3, echo=True)["choices"][0]["logprobs"]
        scored, generated = only["choices"][number]["logprobs"], batch["choices"][number]["logprobs"]
        assert scored["tokens"] == generated["tokens"][:-1] == alone["tokens"]
        assert len(scored["tokens"]) == len(prompt)
        assert scored["token_logprobs"][0] is None
        assert scored["top_logprobs"][0] is None
        for one, other in ((scored, alone), (scored, {name: values[:-1] for name, values in generated.items()})):
            assert one["text_offset"] == other["text_offset"]
            differences = [abs(a - b) for a, b in zip(one["token_logprobs"][1:], other["token_logprobs"][1:], strict=True)]
            assert max(differences, default=0) < TOLERANCE


def test_prompt_logprobs_are_those_of_echo(tiny: Live) -> None:
    prompt = tokens(tiny, TEXTS[3])
    echoed = post(tiny, prompt=prompt, max_tokens=0, logprobs=2, echo=True)["choices"][0]["logprobs"]
    (choice,) = post(tiny, prompt=prompt, max_tokens=1, prompt_logprobs=2)["choices"]
    found = choice["prompt_logprobs"]
    assert found[0] is None
    assert len(found) == len(prompt)
    for token, entry, value in zip(prompt[1:], found[1:], echoed["token_logprobs"][1:], strict=True):
        assert math.isclose(entry[str(token)]["logprob"], value, abs_tol=TOLERANCE)
        assert {scored["rank"] for scored in entry.values()} >= {1, 2}


@pytest.mark.parametrize("text", [*TEXTS, "naïve €uro 😀 text", " leading space"])
@pytest.mark.parametrize("ids", [True, False])
def test_offsets_point_into_the_echoed_text(tiny: Live, text: str, ids: bool) -> None:
    prompt: Any = tokens(tiny, text) if ids else text
    (choice,) = post(tiny, prompt=prompt, max_tokens=8, logprobs=0, echo=True, temperature=0, ignore_eos=True, skip_special_tokens=False)[
        "choices"
    ]
    whole, logprobs = choice["text"], choice["logprobs"]
    if not ids:
        assert whole.startswith(text)
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets)
    for token, begin, end in zip(logprobs["tokens"], offsets, [*offsets[1:], len(whole)], strict=True):
        # A token that is a part of a character is told by its bytes, and the special token before a text is not in it.
        if not token.startswith("bytes:") and begin < end:
            assert whole[begin:end] == token


def test_generate_until(tiny: Live) -> None:
    """lm-eval's other request: batches of prompts with stop strings."""
    body = {"max_tokens": 30, "temperature": 0, "seed": 1234}
    free = post(tiny, prompt=[tokens(tiny, text) for text in TEXTS], **body)["choices"]
    until = free[0]["text"][3:5]
    answer = post(tiny, prompt=[tokens(tiny, text) for text in TEXTS], stop=[until, "<|endoftext|>"], **body)
    ended = sorted(answer["choices"], key=itemgetter("index"))
    assert [choice["text"] for choice in ended] == [choice["text"].partition(until)[0] for choice in free]
    assert ended[0]["stop_reason"] == until


def test_a_remote_tokenizer(tiny: Live) -> None:
    """lm-eval's and other harnesses' use of /tokenize and /detokenize."""
    for text in TEXTS:
        with_special, without = tokens(tiny, text), tokens(tiny, text, special=False)
        assert with_special[-len(without) :] == without
        assert len(with_special) == len(without) + 1
        assert tiny.client.post("/detokenize", json={"tokens": without}).json() == {"prompt": text}
    info = tiny.client.get("/tokenizer_info").json()
    assert tokens(tiny, info["bos_token"], special=False) == tokens(tiny, "", special=True)
    assert len(tokens(tiny, info["eos_token"], special=False)) == 1
    assert info["model_max_length"] == TINY_ENGINE["max_model_len"]
    named = tiny.client.post("/tokenize", json={"prompt": "hello there", "return_token_strs": True}).json()
    assert len(named["token_strs"]) == named["count"]
    assert "".join(named["token_strs"][1:]).replace("Ġ", " ") == "hello there"


def test_truncation_keeps_the_special_token(tiny: Live) -> None:
    ids = tokens(tiny, TEXTS[3])
    (choice,) = post(tiny, prompt=TEXTS[3], max_tokens=1, truncate_prompt_tokens=5, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == [ids[0], *ids[-4:]]
    (right,) = post(tiny, prompt=TEXTS[3], max_tokens=1, truncate_prompt_tokens=5, truncation_side="right", return_token_ids=True)[
        "choices"
    ]
    assert right["prompt_token_ids"] == ids[:5]
    longest = TINY_ENGINE["max_model_len"]
    answer = post(tiny, prompt="word " * 5000, max_tokens=56, ignore_eos=True, truncate_prompt_tokens=-1)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (longest - 56, 56)


def test_token_ids_of_a_stream_and_its_pace(tiny: Live) -> None:
    from tests.server.sse import events, texts

    body = {"prompt": "hello", "seed": 4, "max_tokens": 60, "stop": ["e", "a", "th"], "n": 3, "return_token_ids": True, "logprobs": 1}
    whole = post(tiny, **body)["choices"]
    for interval in (1, 7):
        chunks = events(tiny.client.post(COMPLETIONS, json={**body, "stream": True, "stream_interval": interval}))
        ids: dict[int, list[int]] = {}
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            ids.setdefault(choice["index"], []).extend(choice["token_ids"])
        assert ids == {choice["index"]: choice["token_ids"] for choice in whole}
        assert texts(chunks) == {choice["index"]: choice["text"] for choice in whole}


def test_cached_tokens_are_counted(tiny: Live) -> None:
    body = {"prompt": list(range(300, 350)), "max_tokens": 2, "ignore_eos": True}
    first, second, salted = (post(tiny, **body, **extra)["usage"] for extra in ({}, {}, {"cache_salt": "another"}))
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second, salted)] == [0, 48, 0]
    assert first["total_tokens"] == second["total_tokens"] == 52


def test_best_of(tiny: Live) -> None:
    body = {"prompt": "hello", "seed": 11, "max_tokens": 8, "ignore_eos": True, "logprobs": 0}
    every = post(tiny, n=5, **body)["choices"]
    means = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 8 for choice in every}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    best = post(tiny, n=2, best_of=5, **body)
    assert [choice["text"] for choice in best["choices"]] == ranked[:2]
    assert best["usage"]["completion_tokens"] == 40
