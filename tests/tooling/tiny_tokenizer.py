"""A byte-level BPE tokenizer of exactly 512 tokens, learned here from a fixed text, for the tiny random checkpoints.

Every byte is a token, so every text can be written; the content is the same on every machine and takes milliseconds to make.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from typing import Any

VOCAB_SIZE = 512
SPECIAL_TOKENS: tuple[str, ...] = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS_ID = 0
EOS_ID = 1
IM_START_ID = 2
IM_END_ID = 3

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TEXT = """
A server keeps a pool of blocks. Each request holds a table that names its blocks, and each block holds the keys and values of sixteen
tokens. When a request asks for one more token than its blocks can hold, the pool gives it another block; when the request is finished,
its blocks go back to the pool and the next request may have them. Nothing is copied, and nothing is lost. The prompt is read in
chunks, so that a long prompt does not stop the others; every chunk sees the blocks that were written before it. Then the model
writes: one token for every request in each step, all of them together in one graph that was compiled before the first request came.
The shapes never change. A row that has no request reads and writes the null block, which belongs to nobody. What is the answer to a
question that was asked alone must be the answer to the same question in a crowd of a thousand others: the same tokens, the same words,
the same end. If the client goes away in the middle of a sentence, the server frees what it held and goes on with the rest.
"""


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte value in byte-level BPE vocabularies (as GPT-2 defined it), indexed by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(0x100 + len(characters) - len(printable))
    return tuple(characters[byte] for byte in range(256))


@functools.cache
def merges() -> tuple[tuple[str, str], ...]:
    """The merge rules, most frequent pair first; ties go to the alphabetically first pair."""
    characters = byte_characters()
    counts = Counter(re.findall(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s", _TEXT))
    words = {tuple(characters[byte] for byte in word.encode()): count for word, count in sorted(counts.items())}
    learned: list[tuple[str, str]] = []
    while len(learned) < VOCAB_SIZE - len(SPECIAL_TOKENS) - 256:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        words = {_merge(word, best): count for word, count in words.items()}
    return tuple(learned)


def tokenizer_json() -> dict[str, Any]:
    """The content of `tokenizer.json`; encoding with special tokens puts `<s>` first."""
    tokens = [*SPECIAL_TOKENS, *byte_characters(), *(left + right for left, right in merges())]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bos = SPECIAL_TOKENS[BOS_ID]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [BOS_ID], "tokens": [bos]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges()],
        },
    }


def tokenizer_config_json() -> dict[str, Any]:
    """The content of `tokenizer_config.json`, with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)
