from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.models.gguf_writer import llama_metadata
from xlaserve.errors import CheckpointError, UnsupportedModelError
from xlaserve.models.gguf_tokenizer import merges_from_scores, tokenizer_from_gguf

CORPUS = [
    "The quick brown fox jumps over 12 lazy dogs, it's 3.14159 or 2,718!",
    "def f(x):\n    return x ** 2  # don't\n\n\nprint(f(1234567))",
    "Grüße aus Köln — naïve café, 日本語のテキスト и русский текст 🎉🎉",
    "I'll we'VE THEY'RE he'd   \t\r\n  end",
] * 4
SMOLLM = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def split(pattern: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


# The pre-tokenizers as the models' own tokenizer.json files have them.
ORIGINALS: dict[str, list[Any]] = {
    "smollm": SMOLLM,
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def trained(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    import json

    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": np.array([3 if token == "<|end|>" else 1 for token in vocabulary], np.int32),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Tokenizer, Tokenizer]]:
    """For each pre-tokenizer: the original, and the one rebuilt from its GGUF metadata."""
    originals = {pre: trained(pre) for pre in ORIGINALS}
    return {pre: (original, tokenizer_from_gguf(metadata_of(original, pre))) for pre, original in originals.items()}


@pytest.mark.parametrize("pre", ORIGINALS)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.sampled_from(CORPUS), st.text(alphabet="a1 '\n\tsdé.T", max_size=30)))
def test_byte_level_equals_the_original(pairs: dict[str, tuple[Tokenizer, Tokenizer]], pre: str, text: str) -> None:
    original, rebuilt = pairs[pre]
    ids = original.encode(text).ids
    assert rebuilt.encode(text).ids == ids
    assert rebuilt.decode(ids) == original.decode(ids)


def pieces(pre: str | None, text: str) -> list[str]:
    pre_tokenizer: Any = tokenizer_from_gguf(llama_metadata(**{"tokenizer.ggml.pre": pre})).pre_tokenizer
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


def test_each_digit_is_a_piece_in_smollm() -> None:
    assert pieces("smollm", "hi 123") == ["hi", "Ġ", "1", "2", "3"]


def test_default_pre_tokenizer_cuts_numbers_in_threes() -> None:
    assert pieces(None, "hi, 12345") == ["hi", ",", "Ġ", "123", "45"]


def test_special_tokens_in_text_are_one_token() -> None:
    tokenizer = tokenizer_from_gguf(llama_metadata())
    assert tokenizer.encode("<|im_start|>hell<|im_end|>").ids == [260, 258, 261]
    assert tokenizer.decode([260, 258, 261]) == "hell"
    assert tokenizer.decode([260, 258, 261], skip_special_tokens=False) == "<|im_start|>hell<|im_end|>"


@pytest.mark.parametrize(
    ("pre", "flag", "expected"), [("smollm", True, True), ("smollm", None, False), ("llama-bpe", None, True), ("llama-bpe", False, False)]
)
def test_bos_is_added_as_the_file_says(pre: str, flag: bool | None, expected: bool) -> None:
    tokenizer = tokenizer_from_gguf(llama_metadata(**{"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": flag}))
    assert tokenizer.encode("hell").ids == ([260] if expected else []) + [258]
    assert tokenizer.encode("hell", add_special_tokens=False).ids == [258]


def test_eos_can_be_added() -> None:
    assert tokenizer_from_gguf(llama_metadata(**{"tokenizer.ggml.add_eos_token": True})).encode("hell").ids == [258, 261]


# A SentencePiece vocabulary: specials, the 256 bytes, then pieces with falling scores.
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁a", "ab", "▁ab", "ba", "aba", "bab", "▁aba", "▁", "a", "b", "c", "é"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, "<turn>", "\n\n"]
SPM: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": SPM_TOKENS,
    "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(i) for i in range(len(PIECES))] + [-1000.0, -1000.0], np.float32),
    "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [3, 4], np.int32),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 0,
}


def sentencepiece(text: str) -> list[str]:
    """The SentencePiece BPE algorithm: join the neighbours whose union scores best, leftmost first, until none is left."""
    scores = dict(zip(SPM_TOKENS, SPM["tokenizer.ggml.scores"].tolist(), strict=True))
    pieces = list(text.replace(" ", "▁"))
    while True:
        unions = [(-scores[joined], index) for index in range(len(pieces) - 1) if (joined := pieces[index] + pieces[index + 1]) in PIECES]
        if not unions:
            break
        index = min(unions)[1]
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
    return [token for piece in pieces for token in ([piece] if piece in PIECES else [f"<0x{byte:02X}>" for byte in piece.encode()])]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab cé日", max_size=20))
def test_sentencepiece_equals_the_algorithm(text: str) -> None:
    tokenizer = tokenizer_from_gguf(SPM | {"tokenizer.ggml.add_space_prefix": False})
    assert tokenizer.encode(text, add_special_tokens=False).tokens == sentencepiece(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_prefix_bos_and_added_tokens() -> None:
    tokenizer = tokenizer_from_gguf(SPM)
    assert tokenizer.encode("aba").tokens == ["<s>", "▁aba"]
    assert tokenizer.decode(tokenizer.encode("aba").ids) == "aba"
    bare = tokenizer_from_gguf(SPM | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert bare.encode("aba<turn>\n\nb").tokens == ["aba", "<turn>", "\n\n", "b"]
    assert bare.decode(bare.encode("aba<turn>\n\nb").ids) == "aba\n\nb", "user-defined tokens are text, control tokens are not"


def test_merges_are_ranked_by_score_and_skip_control_tokens() -> None:
    merges = merges_from_scores(["a", "b", "ab", "abb", "</b", "</"], [1, 1, 1, 1, 3, 1], np.array([0, 0, -1, -2, 0, 0], np.float32))
    assert merges == [("a", "b"), ("ab", "b")]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"tokenizer.ggml.pre": "klingon"},
            UnsupportedModelError,
            "pre-tokenizer 'klingon' is not supported; supported are default, gpt-2",
        ),
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModelError, "'bert' is not supported"),
        ({"tokenizer.ggml.tokens": None}, CheckpointError, "no vocabulary"),
        ({"tokenizer.ggml.merges": None}, CheckpointError, "no merges"),
        ({"tokenizer.ggml.merges": ["q q"]}, CheckpointError, "do not fit the vocabulary"),
        ({"tokenizer.ggml.merges": ["nospace"]}, CheckpointError, "do not fit the vocabulary"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, CheckpointError, "3 entries for 262 tokens"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 999}, CheckpointError, "bos_token_id is 999"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": None}, CheckpointError, "1 tokens twice"),
        ({"tokenizer.ggml.model": "llama"}, CheckpointError, "no score for each token"),
    ],
)
def test_what_cannot_be_built_is_said(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tokenizer_from_gguf(llama_metadata(**changes))
