from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from tests.models.gguf_writer import llama_metadata
from tests.models.test_gguf_tokenizer import SPM
from xlaserve.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from xlaserve.models.gguf_tokenizer import tokenizer_from_gguf
from xlaserve.models.tokenizer import Tokenizer, tokenizer_from_directory

BYTE_LEVEL = Tokenizer(tokenizer_from_gguf(llama_metadata()), special_tokens={"bos_token": "<|im_start|>"})
SENTENCEPIECE = Tokenizer(tokenizer_from_gguf(SPM | {"tokenizer.ggml.add_space_prefix": False}), special_tokens={"bos_token": "<s>"})

# "▁" is how SentencePiece writes a space, so it does not survive there.
TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["héllo", "日本語", "👩‍👩‍👧 family", "a  b\n\n", "\ufffd is a character too", "hell<|im_end|>"]),
)


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return [*(stream.step(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 261), max_size=30))
def test_byte_level_pieces_join_to_the_decoded_text(ids: list[int], skip: bool) -> None:
    """Any ids at all, most of them no valid UTF-8."""
    assert "".join(streamed(BYTE_LEVEL, ids, skip=skip)) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_text_survives_encoding_and_streaming(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    pieces = streamed(tokenizer, ids, skip=False)
    assert "".join(pieces) == text
    assert pieces[-1] == "", "whole text leaves nothing to flush"
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()


def test_half_a_character_is_held_back_and_flushed() -> None:
    ids = BYTE_LEVEL.encode("é🎉", add_special_tokens=False)
    assert len(ids) == 6
    stream = BYTE_LEVEL.stream()
    assert [stream.step(token) for token in ids[:5]] == ["", "é", "", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_bytes_that_cannot_become_a_character_do_not_hold_up_the_stream() -> None:
    broken = BYTE_LEVEL.encode("🎉", add_special_tokens=False)[:2] + BYTE_LEVEL.encode("a", add_special_tokens=False)
    assert streamed(BYTE_LEVEL, broken) == ["", "", "\ufffda", ""]


def test_special_tokens_are_skipped_or_shown() -> None:
    ids = [260, 258, 261]
    assert streamed(BYTE_LEVEL, ids) == ["", "hell", "", ""]
    assert streamed(BYTE_LEVEL, ids, skip=False) == ["<|im_start|>", "hell", "<|im_end|>", ""]
    assert BYTE_LEVEL.is_special(260)
    assert not BYTE_LEVEL.is_special(258)


def test_a_generation_keeps_its_leading_space() -> None:
    tokenizer = Tokenizer(tokenizer_from_gguf(SPM))
    ids = tokenizer.encode("aba", add_special_tokens=False)
    assert tokenizer.decode(ids) == "aba"
    assert "".join(streamed(tokenizer, ids)) == " aba"


def test_ids_and_sizes() -> None:
    assert BYTE_LEVEL.vocab_size == 262
    assert BYTE_LEVEL.bos_token_id == 260
    assert Tokenizer(tokenizer_from_gguf(llama_metadata())).bos_token_id is None
    assert BYTE_LEVEL.token_bytes(99_999) == b"", "a padded language-model head has ids that no token has"
    assert BYTE_LEVEL.token_bytes(-1) == b""
    assert SENTENCEPIECE.token_bytes(3 + 0xE9) == b"\xe9"
    assert BYTE_LEVEL.decode([99_999]) == ""


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate") as caught:
        BYTE_LEVEL.encode("a\ud800")
    assert caught.value.field == "prompt"


def test_an_unknown_decoder_is_unsupported() -> None:
    with pytest.raises(UnsupportedModelError, match="decoder \\(none\\) is not supported"):
        Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a")))


def test_no_chat_template() -> None:
    assert BYTE_LEVEL.chat_template is None
    with pytest.raises(InvalidRequestError, match="no chat template") as caught:
        BYTE_LEVEL.render_chat([{"role": "user", "content": "hi"}])
    assert caught.value.field == "messages"


def test_templates_see_special_tokens_and_tools_have_their_own() -> None:
    tokenizer = Tokenizer(
        tokenizer_from_gguf(llama_metadata()),
        special_tokens={"bos_token": "<|im_start|>"},
        chat_templates={"default": "{{ bos_token }}{{ messages[0].content }}{{ extra }}", "tool_use": "{{ tools | tojson }}"},
    )
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(messages, template_kwargs={"extra": "!"}) == "<|im_start|>hi!"
    assert tokenizer.render_chat(messages, tools=[{"name": "é"}]) == '[{"name": "é"}]'
    assert tokenizer.chat_template == "{{ bos_token }}{{ messages[0].content }}{{ extra }}"


def directory(path: Path, config: dict[str, Any], **files: Any) -> Path:
    backend = tokenizer_from_gguf(llama_metadata(**{"tokenizer.ggml.add_bos_token": files.pop("add_bos", False)}))
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


CONFIGS: list[dict[str, Any]] = [
    {},
    {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True},
    {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True, "add_eos_token": True},
    {"bos_token": "<|im_start|>", "add_bos_token": False},
    {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": False, "special": True}, "add_bos_token": True},
    {"added_tokens_decoder": {"262": {"content": "<new>", "special": True}, "263": {"content": "<tag>", "special": False}}},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("in_file", [False, True])
def test_encodes_as_transformers_does(tmp_path: Path, config: dict[str, Any], in_file: bool) -> None:
    from transformers import AutoTokenizer

    directory(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", **config}, add_bos=in_file)
    ours = tokenizer_from_directory(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("hello", "<|im_start|>hell 12<|im_end|>", "<new>x<tag>", ""):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id


def test_template_files_win_over_the_config(tmp_path: Path) -> None:
    directory(tmp_path, {"chat_template": "from config"})
    assert tokenizer_from_directory(tmp_path).chat_template == "from config"
    (tmp_path / "chat_template.jinja").write_text("from file")
    assert tokenizer_from_directory(tmp_path).chat_template == "from file"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tokenizer = tokenizer_from_directory(directory(tmp_path, {"chat_template": named}))
    assert tokenizer.chat_template == "plain"
    assert tokenizer.render_chat([{"role": "user"}], tools=[{}]) == "tools"
    assert tokenizer.render_chat([{"role": "user"}], tools=[]) == "plain"


def test_special_tokens_map_is_read(tmp_path: Path) -> None:
    directory(tmp_path, {}, special_tokens_map__json={"bos_token": "<|im_start|>"})
    assert tokenizer_from_directory(tmp_path).bos_token_id == 260


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json: is not a readable tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is not valid JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, got list"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"999": {"content": "<x>"}}}',
            "'<x>' the id 999, but the vocabulary has it at 262",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    directory(tmp_path, {})
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_directory(tmp_path)


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer: neither tokenizer.json nor tokenizer.model"):
        tokenizer_from_directory(tmp_path)


def test_without_tokenizer_json_transformers_converts(tmp_path: Path) -> None:
    backend = tokenizer_from_gguf(llama_metadata())
    model = json.loads(backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>"}))
    tokenizer = tokenizer_from_directory(tmp_path)
    assert tokenizer.encode("hell") == [258]
    assert tokenizer.bos_token_id == 260
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="transformers cannot convert"):
        tokenizer_from_directory(tmp_path)


def test_the_main_path_imports_neither_transformers_nor_jax(tmp_path: Path) -> None:
    directory(tmp_path, {"chat_template": "{{ messages[0].content }}"})
    code = (
        "import sys; from pathlib import Path; from xlaserve.models.tokenizer import tokenizer_from_directory as read;"
        f"t = read(Path({str(tmp_path)!r})); t.render_chat([{{'role': 'user', 'content': 'x'}}]);"
        "print([m for m in ('transformers', 'torch', 'jax', 'huggingface_hub') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert result.stdout.strip() == "[]"


def test_added_tokens_with_plain_text_keep_their_bytes() -> None:
    backend = tokenizer_from_gguf(llama_metadata())
    backend.add_tokens([AddedToken("two words 日", normalized=False)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.token_bytes(262) == "two words 日".encode()
    assert "".join(streamed(tokenizer, [262, 258])) == tokenizer.decode([262, 258]) == "two words 日hell"
