"""The demo model's tokenizer, streaming and chat template against values that Hugging Face transformers gave (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xlaserve.models.chat_template import ChatTemplate
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.tokenizer import Tokenizer

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_text.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["renderings"])
def test_renderings(case: dict[str, Any]) -> None:
    options = {name: case[name] for name in ("tools", "add_generation_prompt", "continue_final_message")}
    template = ChatTemplate(GOLDEN["templates"][case["template"]])
    assert template.render(case["messages"], **options, variables=GOLDEN["special_tokens"]) == case["rendered"]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return open_checkpoint(smollm2).tokenizer()


def test_tokenizations(tokenizer: Tokenizer) -> None:
    for case in GOLDEN["tokenizations"]:
        ids = tokenizer.encode(case["text"])
        assert ids == case["ids"], case["text"]
        for skip, expected in ((False, case["decoded"]), (True, case["decoded_without_special"])):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
            stream = tokenizer.stream(skip_special_tokens=skip)
            assert "".join(stream.step(token) for token in ids) + stream.flush() == expected


def test_the_files_template_is_the_reference_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.chat_template == GOLDEN["templates"]["smollm2"]
