"""Workloads: the same for the same seed, and distributed as they say."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xlaserve.bench.arrivals import arrival_times
from xlaserve.bench.lengths import SHAREGPT_INPUT, LogNormal, Uniform
from xlaserve.bench.vocabulary import Vocabulary, open_vocabulary
from xlaserve.bench.workload import (
    WorkItem,
    as_texts,
    describe,
    prefix_repetition_items,
    random_items,
    sharegpt_items,
    sharegpt_like_items,
)
from xlaserve.errors import CheckpointError, ConfigError
from xlaserve.models.tokenizer import tokenizer_from_directory


@pytest.fixture(scope="module")
def vocabulary(tiny_model: Callable[[str], Path]) -> Vocabulary:
    return open_vocabulary(str(tiny_model("llama3")))


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    gaps = np.diff(arrival_times(20_001, 50.0, 1.0, rng()))
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1, rel=0.03)
    # Exponential: the share of gaps beyond t falls as exp(-50 t).
    assert np.mean(gaps > 0.02) == pytest.approx(math.exp(-1), rel=0.03)


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float) -> None:
    gaps = np.diff(arrival_times(20_001, 10.0, burstiness, rng()))
    assert np.mean(gaps) == pytest.approx(0.1, rel=0.05)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_arrivals_begin_at_once_and_repeat() -> None:
    assert arrival_times(3, math.inf, 1.0, rng()) == [0.0, 0.0, 0.0]
    assert arrival_times(1, 2.0, 1.0, rng()) == [0.0]
    first = arrival_times(50, 2.0, 1.0, rng())
    assert first == arrival_times(50, 2.0, 1.0, rng())
    assert first != arrival_times(50, 2.0, 1.0, rng(8))
    assert first == sorted(first)


def test_uniform_lengths_reach_both_ends() -> None:
    generator = rng()
    drawn = Counter(Uniform(10, 0.5).draw(generator) for _ in range(5000))
    assert set(drawn) == set(range(5, 16))
    assert min(drawn.values()) > 5000 / 11 * 0.75
    assert {Uniform(10).draw(generator) for _ in range(100)} == {10}
    assert Uniform(1, 0.9).low == 1


def test_log_normal_lengths_have_the_mean_and_keep_the_limits() -> None:
    generator = rng()
    wide = LogNormal(200.0, 0.5, 1, 10**9)
    drawn = np.log([wide.draw(generator) for _ in range(5000)])
    assert np.mean(np.exp(drawn)) == pytest.approx(200, rel=0.03)
    assert np.std(drawn) == pytest.approx(0.5, rel=0.05)
    lengths = [SHAREGPT_INPUT.draw(generator) for _ in range(5000)]
    assert min(lengths) >= 4
    assert max(lengths) <= 1024


def test_random_prompts_share_a_prefix_and_nothing_else(vocabulary: Vocabulary) -> None:
    items = random_items(50, Uniform(20, 0.5), Uniform(8, 0.25), 6, vocabulary, rng())
    assert len({tuple(item.prompt[:6]) for item in items}) == 1
    assert len({tuple(item.prompt[6:10]) for item in items}) == 50
    assert all(item.prompt_len == len(item.prompt) and 16 <= item.prompt_len <= 36 for item in items)
    assert {item.output_len for item in items} == {6, 7, 8, 9, 10}


def test_the_same_seed_gives_the_same_requests(vocabulary: Vocabulary) -> None:
    def make(seed: int) -> list[WorkItem]:
        return random_items(5, Uniform(20, 0.5), Uniform(8, 0.5), 0, vocabulary, rng(seed))

    assert make(1) == make(1)
    assert make(1) != make(2)


def test_prompts_hold_ordinary_tokens_only(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_from_directory(tiny_model("llama3"))
    tokens = set(Vocabulary(tokenizer).ids(20_000, rng()))
    assert len(tokenizer.special_ids) > 0
    assert tokens == set(range(tokenizer.vocab_size)) - set(tokenizer.special_ids.values())
    assert max(Vocabulary(tokenizer, 100).ids(5000, rng())) == 99


def test_a_vocabulary_must_be_somewhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        open_vocabulary(str(tmp_path / "nothing"))


def test_prefixes_are_repeated_evenly(vocabulary: Vocabulary) -> None:
    items = prefix_repetition_items(11, 8, 4, 3, 5, vocabulary, rng())
    counts = Counter(tuple(item.prompt[:8]) for item in items)
    assert sorted(counts.values()) == [3, 4, 4]
    assert {(item.prompt_len, item.output_len) for item in items} == {(12, 5)}
    assert len({tuple(item.prompt[8:]) for item in items}) == 11


def test_lengths_like_sharegpts(vocabulary: Vocabulary) -> None:
    items = sharegpt_like_items(400, None, vocabulary, rng())
    assert all(item.prompt_len + item.output_len <= 2048 for item in items)
    assert 90 < np.mean([item.prompt_len for item in items]) < 170
    assert 250 < np.mean([item.output_len for item in items]) < 340
    assert {item.output_len for item in sharegpt_like_items(5, 17, vocabulary, rng())} == {17}


def sharegpt_file(tmp_path: Path) -> Path:
    def talk(*turns: str) -> dict[str, object]:
        return {"conversations": [{"from": "human", "value": turn} for turn in turns]}

    file = tmp_path / "sharegpt.json"
    good = talk("the question is long enough here", "and so is what was answered then", "more")
    file.write_text(
        json.dumps([good, talk("alone"), talk("", "an answer that is long enough"), talk("x " * 5000, "too long a question here")])
    )
    return file


def test_a_sharegpt_file_gives_first_turns_within_the_limits(tmp_path: Path, vocabulary: Vocabulary) -> None:
    items = sharegpt_items(sharegpt_file(tmp_path), 3, None, vocabulary, rng())
    assert [item.prompt for item in items] == ["the question is long enough here"] * 3
    assert items[0].prompt_len == vocabulary.count("the question is long enough here")
    assert items[0].output_len == vocabulary.count("and so is what was answered then")
    assert sharegpt_items(sharegpt_file(tmp_path), 1, 9, vocabulary, rng())[0].output_len == 9


@pytest.mark.parametrize(("content", "message"), [("[]", "no conversation"), ("{", "cannot be read"), ("[1]", "not ShareGPT")])
def test_other_files_are_refused(tmp_path: Path, vocabulary: Vocabulary, content: str, message: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        sharegpt_items(file, 1, None, vocabulary, rng())


def test_texts_have_nearly_as_many_tokens(vocabulary: Vocabulary) -> None:
    items = random_items(30, Uniform(40), Uniform(8), 0, vocabulary, rng())
    texts = as_texts(items, vocabulary)
    assert all(isinstance(item.prompt, str) for item in texts)
    assert all(item.prompt_len == vocabulary.count(item.prompt) for item in texts if isinstance(item.prompt, str))
    assert all(abs(text.prompt_len - item.prompt_len) <= 4 for text, item in zip(texts, items, strict=True))
    assert as_texts(texts, vocabulary) == texts


def test_a_workload_is_described(vocabulary: Vocabulary) -> None:
    found = describe([WorkItem([1, 2], 2, 4), WorkItem([1, 2, 3, 4], 4, 4)])
    assert found["num_prompts"] == 2
    assert found["prompts"] == "token ids"
    assert found["input_len"]["mean"] == 3
    assert found["output_len"] == {"count": 2, "mean": 4, "std": 0, "min": 4, "median": 4, "max": 4}
