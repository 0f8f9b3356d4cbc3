"""Structured output on a tiny model of random weights: what has a form fits it, whatever the model would say, and nobody else notices."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

from tests.conftest import TINY_ENGINE
from tests.engine.test_llm import assert_idle
from xlaserve import LLM, BeamSearchParams, RequestOutput, SamplingParams, StructuredOutput
from xlaserve.engine.grammar import Grammars, grammar_of
from xlaserve.engine.structure import Structure
from xlaserve.engine.structures import Structures
from xlaserve.errors import InvalidRequestError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TIGHT = StructuredOutput(json_schema=SCHEMA, whitespace="none")
TAG = {
    "type": "structural_tag",
    "format": {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": {"type": "boolean"}}, "end": "</f>"},
}


def fits_schema(text: str) -> bool:
    value = json.loads(text)
    assert list(value) == ["name", "age", "tags"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 8
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    return 1 <= len(value["tags"]) <= 2 and set(value["tags"]) <= {"red", "green"}


FORMS: dict[str, tuple[StructuredOutput, Callable[[str], Any]]] = {
    "schema": (StructuredOutput(json_schema=SCHEMA), fits_schema),
    "schema as text": (StructuredOutput(json_schema=json.dumps(SCHEMA)), fits_schema),
    "schema without whitespace": (
        TIGHT,
        lambda text: fits_schema(text) and text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False),
    ),
    "schema with a pattern": (
        StructuredOutput(json_schema=SCHEMA, whitespace_pattern="[ ]?"),
        lambda text: fits_schema(text) and "\n" not in text and "  " not in text.replace(json.loads(text)["name"], ""),
    ),
    "regex": (StructuredOutput(regex=r"\d{3}-[a-c]{2,4}"), re.compile(r"[0-9]{3}-[a-c]{2,4}").fullmatch),
    "anchored regex": (StructuredOutput(regex=r"^(yes|no)!$"), re.compile("(yes|no)!").fullmatch),
    "choice": (
        StructuredOutput(choice=["yes", "yesterday", 'a "quoted"\\ one\n', "ü😀"]),
        ["yes", "yesterday", 'a "quoted"\\ one\n', "ü😀"].count,
    ),
    "lark": (StructuredOutput(grammar='start: "a" B+ "c"\nB: /[xyz]{2}/'), re.compile("a([xyz]{2})+c").fullmatch),
    "gbnf": (StructuredOutput(grammar='root ::= "hi " name\nname ::= [a-z] [a-z] "."'), re.compile(r"hi [a-z]{2}\.").fullmatch),
    "structural tag": (StructuredOutput(structural_tag=TAG), ["<f>true</f>", "<f>false</f>"].count),
}
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 4},
    {"temperature": 1.0, "seed": 5, "top_k": 3, "top_p": 0.7, "min_p": 0.05, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
]


def params(structured: StructuredOutput | None, **options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 150, "structured": structured, **options})


def one(output: RequestOutput) -> tuple[str, list[int], str | None]:
    (completion,) = output.outputs
    return completion.text, completion.token_ids, completion.finish_reason


@pytest.mark.parametrize("sampling", SAMPLING, ids=range(len(SAMPLING)))
@pytest.mark.parametrize("whole", [False, True], ids=["ended by the model", "past the end of sequence"])
def test_every_kind_fits(sampling: dict[str, Any], whole: bool, tiny_llm: LLM) -> None:
    # Random weights like whitespace too much.
    bias = dict.fromkeys((tiny_llm.tokenizer.encode(space, add_special_tokens=False)[0] for space in " \t\r\n"), -50.0)
    options = {"ignore_eos": whole, "logit_bias": bias, **sampling}
    outputs = tiny_llm.generate(["hello there"] * len(FORMS), [params(form, **options) for form, _ in FORMS.values()])
    for (name, (_, fits)), output in zip(FORMS.items(), outputs, strict=True):
        text, _, reason = one(output)
        assert reason == "stop", (name, text)
        assert fits(text), (name, text)
    assert_idle(tiny_llm)


def test_any_object_can_be_asked_for(tiny_llm: LLM) -> None:
    bias = dict.fromkeys(tiny_llm.tokenizer.encode("}", add_special_tokens=False), 20.0)
    text, _, reason = one(tiny_llm.generate("hello", params(StructuredOutput(json_object=True), logit_bias=bias))[0])
    assert reason == "stop"
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("sampling", SAMPLING, ids=range(len(SAMPLING)))
def test_tokens_that_are_forced_are_those_that_would_be_sampled(sampling: dict[str, Any], tiny_llm: LLM) -> None:
    """With log probabilities every token is the model's to give; without, those that nothing can replace are not waited for."""
    prompts, wanted = ["hello there", "the pool of blocks"], params(TIGHT, **sampling)
    before = tiny_llm.stats().forced_tokens
    sampled = tiny_llm.generate(prompts, replace(wanted, logprobs=0))
    assert tiny_llm.stats().forced_tokens == before
    steps = tiny_llm.stats().steps
    forced = tiny_llm.generate(prompts, wanted)
    assert tiny_llm.stats().forced_tokens > before + 10
    assert list(map(one, forced)) == list(map(one, sampled))
    assert tiny_llm.stats().steps - steps < max(len(one(output)[1]) for output in sampled)
    for output in sampled:
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None
        assert len(logprobs) == len(output.outputs[0].token_ids)


def test_log_probabilities_are_of_the_model_s_own_distribution(tiny_llm: LLM) -> None:
    free = tiny_llm.generate("hello", params(None, logprobs=20, max_tokens=1))[0].outputs[0].logprobs
    bound = tiny_llm.generate("hello", params(StructuredOutput(regex="[0-9]"), logprobs=20, max_tokens=1))[0].outputs[0]
    assert free is not None
    assert bound.logprobs is not None
    others = list(bound.logprobs[0])[1:]
    assert others == [token for token in free[0] if token != bound.token_ids[0]][: len(others)]
    assert bound.logprobs[0][bound.token_ids[0]].rank > 1


def test_completions_of_one_request_differ(tiny_llm: LLM) -> None:
    wanted = params(TIGHT, temperature=1.5, seed=1, n=3)
    outputs = tiny_llm.generate("hello", wanted)[0].outputs
    assert all(fits_schema(output.text) for output in outputs)
    assert len({output.text for output in outputs}) == 3
    alone = tiny_llm.generate("hello", replace(wanted, n=1))[0].outputs[0]
    assert alone.token_ids == outputs[0].token_ids


def test_max_tokens_cuts_also_what_is_forced(tiny_llm: LLM) -> None:
    whole, ids, _ = one(tiny_llm.generate("hello", params(TIGHT))[0])
    for most in (1, 3, len(ids) - 1):
        text, cut, reason = one(tiny_llm.generate("hello", params(TIGHT, max_tokens=most))[0])
        assert (cut, reason) == (ids[:most], "length")
        assert whole.startswith(text)
    assert one(tiny_llm.generate("hello", params(TIGHT, max_tokens=len(ids)))[0])[:2] == (whole, ids)
    assert_idle(tiny_llm)


def test_stop_strings_are_found_in_what_is_forced(tiny_llm: LLM) -> None:
    output = tiny_llm.generate("hello", params(TIGHT, stop='"age'))[0].outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", '"age')
    assert output.text.startswith('{"name":"')
    assert output.text.endswith('",')


def test_the_form_wins_where_nothing_else_is_left(tiny_llm: LLM) -> None:
    digits = [tiny_llm.tokenizer.encode(str(digit), add_special_tokens=False)[0] for digit in range(10)]
    for options in (
        {"allowed_token_ids": [9]},
        {"min_tokens": 20},
        {"logit_bias": dict.fromkeys(digits, -100.0)},
        {"bad_words": list("0123456789")},
    ):
        text, _, reason = one(tiny_llm.generate("hello", params(StructuredOutput(regex="[0-9]{4}"), **options))[0])
        assert re.fullmatch("[0-9]{4}", text)
        assert reason == "stop"


def test_the_form_may_begin_after_a_text(tiny_llm: LLM) -> None:
    free, _, _ = one(tiny_llm.generate("hello", params(None, max_tokens=40))[0])
    marker = free[15:18]
    before = free.partition(marker)[0] + marker
    text, _, reason = one(tiny_llm.generate("hello", params(StructuredOutput(choice=["yes", "no"], after=marker)))[0])
    assert reason == "stop"
    assert text.startswith(before)
    assert re.search("(yes|no)$", text)
    never, _, _ = one(tiny_llm.generate("hello", params(StructuredOutput(choice=["yes"], after="not in it at all"), max_tokens=40))[0])
    assert never == free


def test_masks_are_what_llguidance_answers(tiny_llm: LLM) -> None:
    tokenizer, info = tiny_llm.tokenizer, tiny_llm._engine.plan.info()  # pyright: ignore[reportPrivateUsage]
    grammars = Grammars(lambda: tokenizer, info.vocab_size, info.eos_ids)
    tokens = grammars._prepared()[1]  # pyright: ignore[reportPrivateUsage]
    for name, (form, _) in FORMS.items():
        ids = one(tiny_llm.generate("hello", params(form, logprobs=0, temperature=1.0, seed=2))[0])[1]
        structure, matcher = Structure(form), LLMatcher(tokens, grammar_of(form, tokenizer))
        structure.begin(grammars)
        for token in ids:
            assert structure.mask.dtype == np.int32
            if structure.complete:
                break
            assert structure.mask.tobytes() == matcher.compute_bitmask()[: structure.mask.nbytes], name
            assert structure.mask.view(np.uint32)[token // 32] >> token % 32 & 1
            structure.consume(token)
            assert matcher.consume_token(token)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(["}, "unclosed character class"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"grammar": "start: b"}, 'unknown name: "b"'),
    ({"grammar": "root ::= ["}, "no GBNF"),
    ({"grammar": "start: A\nA: /a/ & /b/"}, "cannot be used"),
    ({"json_schema": {"type": "colour"}}, "colour"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json_schema": {"$ref": "http://localhost:1/schema"}}, "cannot be used"),
    ({"json_schema": {"type": "object", "properties": {"a": False}, "required": ["a"]}}, "nsatisfiable"),
    ({"structural_tag": {"type": "structural_tag", "format": {"type": "poem"}}}, "format type must be one of"),
    (
        {"structural_tag": {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["<b"]}},
        "triggers",
    ),
]


@pytest.mark.parametrize(("form", "message"), BAD)
def test_a_form_without_sense_is_refused_before_anything_runs(form: dict[str, Any], message: str, tiny_llm: LLM) -> None:
    steps = tiny_llm.stats().steps
    with pytest.raises(InvalidRequestError, match=re.escape(message)) as caught:
        tiny_llm.generate(["hello", "there"], [params(None), params(StructuredOutput(**form))])
    assert caught.value.field == f"structured_outputs.{next(iter(form))}"
    assert tiny_llm.stats().steps == steps
    assert_idle(tiny_llm)


def test_beam_search_takes_no_form() -> None:
    with pytest.raises(TypeError):
        BeamSearchParams(beam_width=2, max_tokens=3, structured=TIGHT)  # type: ignore[call-arg]


def test_a_form_that_hangs_slows_nobody(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence's mask is filled when all others have ended, and not before."""
    others_done, stuck = threading.Event(), StructuredOutput(regex="[a-z]{6}")
    consume, finish = Structure.consume, tiny_llm._core._scheduler.finish  # pyright: ignore[reportPrivateUsage]
    left = 5

    def slow(self: Structure, token: int) -> None:
        if self._structured == stuck:  # pyright: ignore[reportPrivateUsage]
            assert others_done.wait(60)
        consume(self, token)

    def count(*args: Any) -> None:
        nonlocal left
        finish(*args)
        left -= 1
        if left == 0:
            others_done.set()

    monkeypatch.setattr(Structure, "consume", slow)
    monkeypatch.setattr(tiny_llm._core._scheduler, "finish", count)  # pyright: ignore[reportPrivateUsage]
    forms = [stuck, *[StructuredOutput(regex="[0-9]{9}")] * 2, None, None, TIGHT]
    outputs = tiny_llm.generate(["hello"] * 6, [params(form, max_tokens=60) for form in forms])
    assert re.fullmatch("[a-z]{6}", outputs[0].outputs[0].text)
    assert re.fullmatch("[0-9]{9}", outputs[1].outputs[0].text)


def test_a_form_that_fails_ends_its_own_request(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    consume = Structure.consume

    def failing(self: Structure, token: int) -> None:
        if self._structured.regex == "[a-z]{6}":  # pyright: ignore[reportPrivateUsage]
            raise RuntimeError("too complex")
        consume(self, token)

    monkeypatch.setattr(Structure, "consume", failing)
    outputs = tiny_llm.generate(["hello"] * 2, [params(StructuredOutput(regex=form)) for form in ("[a-z]{6}", "[0-9]{6}")])
    assert [output.outputs[0].finish_reason for output in outputs] == ["error", "stop"]
    assert_idle(tiny_llm)


@pytest.mark.parametrize("ahead", [True, False], ids=["async", "sync"])
def test_a_crowd_with_and_without_forms(ahead: bool, tiny_model: Callable[[str], Path]) -> None:
    """Twenty of each in eight slots and too few blocks: they are preempted, and give what they give alone; nothing is compiled."""
    with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, "num_blocks": 21, "async_scheduling": ahead}) as llm:
        wishes = [params(TIGHT if number % 2 else None, temperature=1.0, seed=number, max_tokens=70) for number in range(40)]
        prompts = [f"hello {'there ' * (number % 7)}" for number in range(40)]
        crowd = llm.generate(prompts, wishes)
        stats = llm.stats()
        assert stats.preemptions > 0
        assert stats.compile_events == 0
        assert all(fits_schema(one(output)[0]) for output in crowd[1::2])
        assert one(llm.generate(prompts[3], wishes[3])[0]) == one(crowd[3])
        assert one(llm.generate(prompts[4], wishes[4])[0]) == one(crowd[4])
        assert_idle(llm)


def test_threads_end_with_their_engine(tiny_llm: LLM) -> None:
    grammars = tiny_llm._core._structures.grammars  # type: ignore[union-attr]
    structures = Structures(grammars)
    before = {thread.ident for thread in threading.enumerate()}
    sequence = tiny_llm._inputs.request("hello", params(TIGHT), None).sequences[0]
    structures.add(sequence)
    started = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert started
    structures.wait(60)
    assert structures.collect() == [sequence]
    del structures
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()
