"""What engines are given is the same for all of them and in every run, and what is made of their times is what tables say."""

from __future__ import annotations

import hashlib
import json

import pytest

from benchmarks.peers.speedup import brief, paired_speedup, spread
from benchmarks.peers.workload import MAX_MODEL_LEN, MAX_REQUESTS, MEASURES
from xlaserve.bench.spread import Spread

_BY_NAME = {measure.name: measure for measure in MEASURES}


def test_prompts_are_the_same_on_every_machine() -> None:
    content = json.dumps([measure.prompts(repeat) for measure in MEASURES for repeat in range(2)])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "f8cd041f244b2baf"


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_repeats_have_the_same_lengths_and_other_tokens(measure) -> None:
    first, second = measure.prompts(0), measure.prompts(1)
    assert [len(prompt) for prompt in first] == [len(prompt) for prompt in second]
    assert len(first) == measure.requests <= MAX_REQUESTS
    assert all(measure.shortest <= len(prompt) <= measure.longest for prompt in first)
    assert all(len(prompt) + measure.output_len <= MAX_MODEL_LEN for prompt in first)
    prompts = [tuple(prompt[:16]) for prompt in first + second]
    assert len(set(prompts)) == len(prompts), "two prompts begin alike, and a cache could help"


def test_values_are_in_their_units() -> None:
    assert _BY_NAME["ttft-512"].value(0.5, 0.25) == 250
    assert _BY_NAME["decode"].value(1.5, 0.23) == pytest.approx(127 / 1.27)
    assert _BY_NAME["batch-32"].value(4.0, 0.5) == 32 * 64 / 4


def test_more_than_one_is_faster_in_either_unit() -> None:
    assert _BY_NAME["ttft-128"].speedup(50, 100) == 2
    assert _BY_NAME["decode"].speedup(100, 50) == 2


def test_spread_leaves_out_what_is_missing() -> None:
    assert spread([3.0, None, 1.0, 2.0]) == Spread((3.0, 1.0, 2.0))
    assert spread([None]) is None
    assert brief(Spread((12.345, 9.994, 123.4))) == "12.3 [9.99, 123]"


def test_ratios_are_of_the_same_repeat() -> None:
    """A machine that is half as fast in one repeat is so for both: the ratio does not see it, while that of the medians would."""
    found = paired_speedup(_BY_NAME["decode"], [100, 50, 30], [80, 40, 15])
    assert found == Spread((1.25, 1.25, 2.0))
    assert paired_speedup(_BY_NAME["decode"], [100, None, 30], [80, 40, None]) == Spread((1.25,))
    assert paired_speedup(_BY_NAME["decode"], [100], []) is None
