"""What is asked of an engine: prompts and how long their outputs are to be. The same seed gives the same requests. Imports no JAX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xlaserve.bench.lengths import SHAREGPT_INPUT, SHAREGPT_OUTPUT, Lengths
from xlaserve.bench.spread import Spread
from xlaserve.bench.vocabulary import Vocabulary
from xlaserve.errors import ConfigError

SHORTEST, LONGEST_PROMPT, LONGEST_SEQUENCE = 4, 1024, 2048
"""Limits in tokens by which vLLM's benchmarks filter ShareGPT."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request.

    Args:
        prompt: token ids, or text.
        prompt_len: tokens of it, as counted here.
        output_len: tokens to generate.
    """

    prompt: list[int] | str
    prompt_len: int
    output_len: int


def random_items(
    count: int, inputs: Lengths, outputs: Lengths, prefix_len: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> list[WorkItem]:
    """Prompts of random tokens that have nothing in common but a prefix, where one is asked for.

    Args:
        count: how many.
        inputs: lengths of what follows the prefix.
        outputs: lengths of outputs.
        prefix_len: tokens that all prompts begin with.
        vocabulary: where tokens come from.
        rng: where chance comes from.
    """
    prefix = vocabulary.ids(prefix_len, rng)
    items: list[WorkItem] = []
    for _ in range(count):
        ids = prefix + vocabulary.ids(inputs.draw(rng), rng)
        items.append(WorkItem(ids, len(ids), outputs.draw(rng)))
    return items


def prefix_repetition_items(
    count: int, prefix_len: int, suffix_len: int, num_prefixes: int, output_len: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> list[WorkItem]:
    """Prompts that share one of a few prefixes, in random order (vLLM's prefix_repetition).

    Args:
        count: how many; as many of each prefix, and one more of the first ones where that does not divide evenly.
        prefix_len: tokens of a prefix.
        suffix_len: tokens of a prompt's own that follow.
        num_prefixes: different prefixes.
        output_len: tokens to generate.
        vocabulary: where tokens come from.
        rng: where chance comes from.
    """
    prefixes = [vocabulary.ids(prefix_len, rng) for _ in range(num_prefixes)]
    order = rng.permutation(np.arange(count) % num_prefixes)
    return [WorkItem(prefixes[which] + vocabulary.ids(suffix_len, rng), prefix_len + suffix_len, output_len) for which in order]


def sharegpt_like_items(count: int, output_len: int | None, vocabulary: Vocabulary, rng: np.random.Generator) -> list[WorkItem]:
    """Prompts of random tokens with lengths like ShareGPT's; `SHAREGPT_INPUT` says where these come from.

    Args:
        count: how many.
        output_len: tokens to generate; None for lengths like ShareGPT's.
        vocabulary: where tokens come from.
        rng: where chance comes from.
    """
    items: list[WorkItem] = []
    while len(items) < count:
        length, output = SHAREGPT_INPUT.draw(rng), output_len or SHAREGPT_OUTPUT.draw(rng)
        if length + output <= LONGEST_SEQUENCE:
            items.append(WorkItem(vocabulary.ids(length, rng), length, output))
    return items


def sharegpt_items(file: Path, count: int, output_len: int | None, vocabulary: Vocabulary, rng: np.random.Generator) -> list[WorkItem]:
    """First turns of conversations in a file of ShareGPT's form, in random order; the answer there says how long the output is to be.

    Args:
        file: a JSON list of objects with `conversations`, a list of objects with `value`.
        count: how many; conversations are used again where there are fewer.
        output_len: tokens to generate; None for as many as the answer has.
        vocabulary: counts tokens.
        rng: where chance comes from.

    Raises:
        ConfigError: the file cannot be read, or has no conversation within the limits.
    """
    turns = _first_turns(file)
    items: list[WorkItem] = []
    for at in rng.permutation(len(turns)):
        if len(items) == count:
            break
        question, answer = turns[at]
        length, output = vocabulary.count(question), output_len or vocabulary.count(answer)
        if SHORTEST <= length <= LONGEST_PROMPT and output >= SHORTEST and length + output <= LONGEST_SEQUENCE:
            items.append(WorkItem(question, length, output))
    if not items:
        raise ConfigError(f"--dataset-path {file} has no conversation of {SHORTEST} to {LONGEST_PROMPT:,} tokens in its first turn.")
    return [items[at % len(items)] for at in range(count)]


def as_texts(items: Sequence[WorkItem], vocabulary: Vocabulary) -> list[WorkItem]:
    """The same requests with texts for prompts, for servers that take no token ids. Prefixes stay shared to within a few tokens."""
    texts: list[WorkItem] = []
    for item in items:
        if isinstance(item.prompt, str):
            texts.append(item)
            continue
        text = vocabulary.text(item.prompt)
        texts.append(replace(item, prompt=text, prompt_len=vocabulary.count(text)))
    return texts


def describe(items: Sequence[WorkItem]) -> dict[str, Any]:
    """Number and lengths of requests, as JSON data."""
    return {
        "num_prompts": len(items),
        "prompts": "text" if items and isinstance(items[0].prompt, str) else "token ids",
        "input_len": Spread.of(item.prompt_len for item in items).as_json(),
        "output_len": Spread.of(item.output_len for item in items).as_json(),
    }


def _first_turns(file: Path) -> list[tuple[str, str]]:
    try:
        conversations = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dataset-path {file} cannot be read: {error}.") from error
    try:
        talks = [talk["conversations"] for talk in conversations if len(talk["conversations"]) >= 2]
        return [(str(talk[0]["value"]), str(talk[1]["value"])) for talk in talks]
    except (TypeError, KeyError) as error:
        raise ConfigError(f"--dataset-path {file} is not ShareGPT: it must be a list of objects with `conversations`.") from error


Workload = Callable[[int, Vocabulary, np.random.Generator], list[WorkItem]]
"""Makes so many requests."""
