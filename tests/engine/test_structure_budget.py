"""Text before a form is ended after its budget of tokens, where it is of the kind to be ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers

from tests.tooling.tiny_tokenizer import EOS_ID, VOCAB_SIZE, tokenizer_json
from xlaserve.engine.grammar import Grammars
from xlaserve.engine.structure import Structure
from xlaserve.errors import InvalidRequestError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.structured import StructuredOutput


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json())))


def written(tokenizer: Tokenizer, wants: str, most: int = 40, **form: Any) -> str:
    """What comes where the model wants to write a text and gets its way as far as the mask allows; "x" is wanted after its end."""
    structure = Structure(StructuredOutput(choice=["yes"], after="</t>", **form))
    structure.begin(Grammars(lambda: tokenizer, VOCAB_SIZE, [EOS_ID]))
    came: list[int] = []
    left = tokenizer.encode(wants, add_special_tokens=False)
    while not structure.complete and len(came) < most:
        allowed = [token for token in range(VOCAB_SIZE) if structure.mask[token // 32] >> token % 32 & 1]
        token = left.pop(0) if left and left[0] in allowed else allowed[0] if len(allowed) < VOCAB_SIZE // 2 else left.pop(0)
        structure.consume(token)
        assert structure.error is None
        came.append(token)
        if not left:
            left = tokenizer.encode("x", add_special_tokens=False)
    return tokenizer.decode(came)


def test_the_marker_is_forced(tokenizer: Tokenizer) -> None:
    thought = "the pool gives another block"
    tokens = tokenizer.encode(thought, add_special_tokens=False)
    for budget in (0, 1, 3):
        assert written(tokenizer, thought, after_tokens=budget) == tokenizer.decode(tokens[:budget]) + "</t>yes"


def test_text_that_ends_by_itself_is_left_alone(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, "the</t>", after_tokens=30) == "the</t>yes"


def test_only_text_with_the_opening_is_ended(tokenizer: Tokenizer) -> None:
    opened = written(tokenizer, "<t>the pool gives another block", after_tokens=1, after_opening="<t>")
    assert opened.startswith("<t>")
    assert opened.endswith("</t>yes")
    assert len(opened) < len("<t>the pool gives another block")
    other = written(tokenizer, "the pool gives another block", after_tokens=2, after_opening="<t>")
    assert "</t>" not in other
    assert other.endswith("yes")


@pytest.mark.parametrize("fields", [{"after_tokens": -1}, {"after_tokens": True}, {"after_opening": ""}])
def test_wrong_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        StructuredOutput(json_object=True, after="</t>", **fields)
    with pytest.raises(InvalidRequestError):
        StructuredOutput(json_object=True, after_tokens=1)
