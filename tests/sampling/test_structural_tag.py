"""Structural tags: which texts fit their grammars, as llguidance reads them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import tokenizers
from llguidance import LLMatcher, LLTokenizer

from tests.tooling.tiny_tokenizer import EOS_ID, IM_START_ID, SPECIAL_TOKENS, VOCAB_SIZE, tokenizer_json
from xlaserve.sampling.structural_tag import tag_grammar

SPECIALS = {text: number for number, text in enumerate(SPECIAL_TOKENS)}
NUMBER = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
CALL = {"type": "tag", "begin": "<tool_call>", "content": {"type": "json_schema", "json_schema": NUMBER}, "end": "</tool_call>"}
ONE, TWO = '<tool_call>{"x":1}</tool_call>', '<tool_call>{"x":1}</tool_call>\n<tool_call>{"x":2}</tool_call>'


@cache
def backend() -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json()))


@cache
def tokens() -> LLTokenizer:
    return LLTokenizer(backend().to_str(), n_vocab=VOCAB_SIZE, eos_token=[EOS_ID])


def fits(tag: dict[str, Any], text: str) -> bool:
    matcher = LLMatcher(tokens(), LLMatcher.grammar_from_lark(tag_grammar(json.dumps(tag), SPECIALS)), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = backend().encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def new(form: dict[str, Any]) -> dict[str, Any]:
    return {"type": "structural_tag", "format": form}


OLDER = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<function=f>", "schema": NUMBER, "end": "</function>"},
        {"begin": "<function=g>", "schema": {"type": "string"}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}
TRIGGERED = {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": [CALL]}
SEPARATED = {"type": "tags_with_separator", "tags": [CALL], "separator": "\n"}
THINK = {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"}
EITHER = {"type": "or", "elements": [{"type": "const_string", "value": "yes"}, {"type": "regex", "pattern": "[0-9]+/x\n"}]}
SPECIAL = {"type": "tag", "begin": "<|im_start|>go", "content": {"type": "regex", "pattern": "b+"}, "end": ""}
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        OLDER,
        ["hello", 'so <function=f>{"x": 1}</function> and <function=g>"a"</function> bye', ""],
        ['<function=f>{"x":"a"}</function>', "<function=h>", 'x <function=f>{"x":1}'],
    ),
    (new(TRIGGERED), ["hello", f"hello {ONE} {ONE} bye"], ["hello <tool_call>", "<tool_call>{}</tool_call>"]),
    (new({**TRIGGERED, "at_least_one": True}), [f"hello {ONE}", ONE], ["hello", ""]),
    (new({**TRIGGERED, "stop_after_first": True}), [f"hello {ONE}", "hello"], [f"hello {ONE} bye"]),
    (new(SEPARATED), ["", ONE, TWO], ["hello", f"{ONE}{ONE}", f"{ONE}\n"]),
    (new({**SEPARATED, "at_least_one": True}), [ONE, TWO], [""]),
    (new({**SEPARATED, "at_least_one": True, "stop_after_first": True}), [ONE], ["", TWO]),
    (
        new({"type": "sequence", "elements": [THINK, EITHER]}),
        ["<think>a\nb</think>yes", "<think></think>12/x\n"],
        ["<think>a</think>no", "yes"],
    ),
    (new({"type": "any_text"}), ["", "anything\n"], []),
    (new(SPECIAL), ["<|im_start|>gobb"], ["gobb", "<|im_start|>go"]),
    (new({"type": "triggered_tags", "triggers": ["<|im_start|>"], "tags": [SPECIAL]}), ["a <|im_start|>gob", "a"], ["<|im_start|>x"]),
]


@pytest.mark.parametrize(("tag", "good", "bad"), CASES, ids=range(len(CASES)))
def test_texts_that_fit_and_texts_that_do_not(tag: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(tag, text)] == []
    assert [text for text in bad if fits(tag, text)] == []


def test_special_tokens_are_named_by_their_ids() -> None:
    assert f"<[{IM_START_ID}]>" in tag_grammar(json.dumps(new(SPECIAL)), SPECIALS)


@pytest.mark.parametrize(
    "tag",
    [
        {},
        {"type": "structural_tag"},
        new({"type": "poem"}),
        new({"type": "sequence", "elements": []}),
        new({"type": "tag", "begin": "a", "end": "b"}),
        new({"type": "const_string", "value": 5}),
        new({**TRIGGERED, "triggers": ["<other"]}),
        new({**TRIGGERED, "triggers": [""]}),
        {**OLDER, "structures": [{"schema": {}}]},
    ],
)
def test_what_is_no_tag_is_an_error(tag: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|needs|missing|begins"):
        tag_grammar(json.dumps(tag), SPECIALS)
