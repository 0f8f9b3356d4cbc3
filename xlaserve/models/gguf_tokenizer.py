"""A `tokenizers.Tokenizer` from the vocabulary inside a GGUF file.

Two kinds exist: byte-level BPE ("gpt2", with merges and a named pre-tokenizer) and SentencePiece BPE ("llama", with scores, from which
the merges are reconstructed). Special tokens become added tokens, so that text such as `<|im_start|>` is one token, as in Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xlaserve.errors import CheckpointError, UnsupportedModelError

# Token types (enum llama_token_type).
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_TAIL}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# What llama.cpp does where a file names no pre-tokenizer: each pattern splits further what the one before it left.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# llama.cpp's names of pre-tokenizers, by what they do.
_PRE_TOKENIZERS: dict[str, str] = {
    "default": "default",
    "gpt-2": "gpt2",
    "phi-2": "gpt2",
    "mpt": "gpt2",
    "olmo": "gpt2",
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "llama-bpe": "llama3",
    "smaug-bpe": "llama3",
    "dbrx": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "stablelm2": "qwen2",
    "tekken": "tekken",
}
# These prepend the beginning-of-sequence token, and take a whole word from the vocabulary without merging, unless told otherwise.
_BOS_BY_DEFAULT = ("llama3", "llama-v3", "llama-bpe", "tekken")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that the metadata describe.

    Args:
        metadata: the key-value pairs of the file.

    Raises:
        UnsupportedModelError: the tokenizer model or its pre-tokenizer is not known; guessing one would give wrong tokens silently.
        CheckpointError: the vocabulary is missing or malformed.
    """
    model = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError("The GGUF metadata hold no vocabulary (tokenizer.ggml.tokens).")
    types = metadata.get("tokenizer.ggml.token_type")
    kinds: list[int] = types.tolist() if isinstance(types, np.ndarray) else [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.tokens names {len(tokens) - len(vocabulary)} tokens twice.")
    if model == "gpt2":
        tokenizer = _byte_level(metadata, pre, vocabulary)
        prepends = pre in _BOS_BY_DEFAULT
    elif model == "llama":
        tokenizer = _sentencepiece(metadata, tokens, kinds, vocabulary)
        prepends = True
    else:
        raise UnsupportedModelError(
            f"The GGUF tokenizer model {model!r} is not supported; supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)."
        )
    _add_tokens(tokenizer, tokens, kinds)
    _add_ends(tokenizer, metadata, tokens, prepends)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], pre: str, vocabulary: dict[str, int]) -> Tokenizer:
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(f"The GGUF pre-tokenizer {pre!r} is not supported; supported are {', '.join(_PRE_TOKENIZERS)}.")
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise CheckpointError("The GGUF metadata hold no merges (tokenizer.ggml.merges), which a gpt2 tokenizer needs.")
    # A token may start with a space in no byte-level vocabulary, so the first space after the first character separates the two.
    merges = [(line[: (cut := line.find(" ", 1))], line[cut + 1 :]) for line in lines]
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _BOS_BY_DEFAULT)
    except Exception as error:  # the library raises its own bare Exception
        raise CheckpointError(f"tokenizer.ggml.merges do not fit the vocabulary: {error}.") from error
    tokenizer = Tokenizer(model)
    split = _PRE_TOKENIZERS[pre]
    patterns = {"llama3": _LLAMA3, "qwen2": _QWEN2, "tekken": _TEKKEN}
    if split in patterns:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(patterns[split]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif split == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif split == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _DEFAULT]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], vocabulary: dict[str, int]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise CheckpointError("The GGUF metadata hold no score for each token (tokenizer.ggml.scores), which a llama tokenizer needs.")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", next((index for index, kind in enumerate(kinds) if kind == _UNKNOWN), None))
    unk_token = tokens[unknown] if isinstance(unknown, int) and unknown < len(tokens) else None
    merges = merges_from_scores(tokens, kinds, scores)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unk_token, fuse_unk=True, byte_fallback=True))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def merges_from_scores(tokens: Sequence[str], kinds: Sequence[int], scores: np.ndarray) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE vocabulary, best first.

    SentencePiece joins the neighbours whose union has the best score, so every way to cut a token in two known tokens is a merge,
    ranked by the token's score (ties: longer left part, then longer right part first, as Hugging Face's converter orders them).

    Args:
        tokens: the vocabulary.
        kinds: a token type for each; control tokens take no part.
        scores: float32, one for each.
    """
    pieces = {token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _CONTROL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for (token, _), score in zip(pieces.items(), scores[list(pieces.values())].tolist(), strict=True):
        if len(token) < 2:
            continue
        cuts = [
            (pieces[left], pieces[right], left, right)
            for cut in range(1, len(token))
            if (right := token[cut:]) in pieces and (left := token[:cut]) in pieces
        ]
        cuts.sort()
        ranked += [(score, len(left), len(right), left, right) for _, _, left, right in cuts]
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in ranked]


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    special = [
        AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _UNKNOWN)
    ]
    defined = [
        AddedToken(token, special=False, normalized=False) for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED
    ]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(defined)


def _add_ends(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], prepends: bool) -> None:
    """Have `encode` add the beginning- and end-of-sequence tokens that the metadata ask for."""
    ends: list[tuple[str, int]] = []
    template = ["$A"]
    for name, default in (("bos", prepends), ("eos", False)):
        if not metadata.get(f"tokenizer.ggml.add_{name}_token", default):
            continue
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(index, int) or index >= len(tokens):
            raise CheckpointError(f"tokenizer.ggml.add_{name}_token asks for a token, but tokenizer.ggml.{name}_token_id is {index!r}.")
        ends.append((tokens[index], index))
        template.insert(0 if name == "bos" else len(template), tokens[index])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
