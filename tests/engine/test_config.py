"""Engine sizes: what follows from model, platform and wishes, and messages whose remedy works."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tooling.properties import examples
from xlaserve.buckets.ladder import make_ladder
from xlaserve.engine.config import EngineConfig, Limits, settle, settle_dtype
from xlaserve.engine.seating import slot_bytes
from xlaserve.errors import ConfigError
from xlaserve.models.config import LayerAttention, ModelConfig, Rope
from xlaserve.platforms.platform import Platform

MODEL = ModelConfig(
    family="llama",
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    layers=(LayerAttention(None, Rope(1e4)),) * 2,
    max_position=2048,
    norm_eps=1e-5,
    activation="silu",
    tie_embeddings=True,
    query_scale=0.25,
)
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
"""Keys and values, two layers, two heads of 16 float32 numbers."""


@dataclass(frozen=True, slots=True)
class FixedMemory(Platform):
    """A platform with a given number of bytes for KV."""

    budget: int = 1 << 30

    def kv_budget(self, weight_bytes: int) -> int:
        return max(0, self.budget - weight_bytes)


PLATFORM = FixedMemory("test", "cpu", "float32", 16, 32, 512, "tiled", True, "")


def limits(platform: Platform = PLATFORM, weight_bytes: int = 0, **options: Any) -> Limits:
    return settle(EngineConfig(**options), MODEL, platform, weight_bytes)


def test_defaults_come_from_model_and_platform() -> None:
    found = limits()
    assert (found.dtype, found.max_model_len, found.max_num_seqs, found.max_num_batched_tokens, found.block_size) == (
        "float32",
        2048,
        32,
        512,
        16,
    )
    assert found.num_blocks == 32 * 128 + 1, "as many as all sequences at full length could use, and the null block"
    assert found.kv_tokens == 32 * 2048
    assert found.kv_bytes == found.num_blocks * 16 * TOKEN_BYTES


def test_memory_bounds_blocks_and_length() -> None:
    budget = 100 * 16 * TOKEN_BYTES + slot_bytes(PLATFORM.max_num_seqs, MODEL.vocab_size)
    tight = replace(PLATFORM, budget=budget + 16 * TOKEN_BYTES - 1)
    assert limits(tight).num_blocks == 101
    assert limits(tight).max_model_len == 1600
    assert limits(tight, weight_bytes=50 * 16 * TOKEN_BYTES).num_blocks == 51
    assert limits(tight, dtype="bfloat16").num_blocks == 202
    assert limits(tight, dtype="bfloat16").max_model_len == 2048


def test_wishes_are_kept() -> None:
    found = limits(max_model_len=100, max_num_seqs=3, max_num_batched_tokens=40, block_size=8, num_blocks=14, dtype="float16")
    assert (found.dtype, found.max_model_len, found.max_num_seqs) == ("float16", 100, 3)
    assert (found.max_num_batched_tokens, found.block_size, found.num_blocks) == (40, 8, 14)


@pytest.mark.parametrize(("wish", "wanted"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_dtype(wish: Any, wanted: str) -> None:
    assert settle_dtype(EngineConfig(dtype=wish), PLATFORM) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 2049}, "max_model_len 2049 .* 2048 positions"),
        (
            {"max_model_len": 500, "num_blocks": 11},
            r"max_model_len 500 .* holds 160 tokens .*--max-model-len 160 or less, or --num-blocks 33",
        ),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 32}, "max_num_batched_tokens 16 .* max_num_seqs 32 .*--max-num-batched-tokens 47"),
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens 8"),
    ],
)
def test_sizes_that_do_not_fit_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limits(**options)


@pytest.mark.parametrize(
    "field",
    [
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
        "num_blocks",
        "compile_threads",
        "max_queued_requests",
        "max_queued_tokens",
        "stall_timeout",
        "seed",
    ],
)
@pytest.mark.parametrize("value", ["8", 1.5, True, -1, -(2**70), [8]], ids=repr)
def test_values_of_the_wrong_kind_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{field} must be .*{re.escape(str(value))}"):
        EngineConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ({"dtype": None}, "dtype must be .* got None"),
        ({"block_size": 24}, "power of two, got 24"),
        ({"block_size": 0}, "got 0"),
        ({"num_blocks": 1}, "at least 2.* got 1"),
        ({"max_queued_requests": None}, "max_queued_requests must be .*None"),
        ({"scheduling_policy": "sjf"}, "scheduling_policy must be fcfs or priority, got 'sjf'"),
        ({"enable_prefix_caching": "no"}, "enable_prefix_caching must be true or false, got .no."),
        ({"async_scheduling": 1}, "async_scheduling must be true or false, got 1"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**options)


def try_settle(options: dict[str, Any], budget: int) -> Limits | str:
    try:
        return limits(replace(PLATFORM, budget=budget), **options)
    except ConfigError as error:
        return str(error)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_model_len": st.integers(2, 2100),
        "max_num_seqs": st.sampled_from((1, 3, 32, 33, 500)),
        "max_num_batched_tokens": st.integers(1, 600),
        "block_size": st.sampled_from((1, 2, 16, 128)),
        "num_blocks": st.integers(2, 200),
    },
)


@given(OPTIONS, st.sampled_from((0, 1, TOKEN_BYTES, 10 * 16 * TOKEN_BYTES, 1 << 30)))
@examples(400)
def test_what_settles_can_run_and_what_does_not_says_what_would(options: dict[str, Any], budget: int) -> None:
    found = try_settle(options, budget)
    for _ in range(4):
        if not isinstance(found, str):
            break
        flags = re.findall(r"--([a-z-]+) (\d+)", found)
        assert flags, f"the message must hold a remedy: {found}"
        options = {**options, flags[0][0].replace("-", "_"): int(flags[0][1])}
        found = try_settle(options, budget)
    assert not isinstance(found, str), f"the remedies do not help: {found}"
    assert 2 <= found.max_model_len <= min(2048, found.kv_tokens)
    # A full house still leaves room for a block of some prompt in every iteration.
    assert found.max_num_batched_tokens - (found.max_num_seqs - 1) >= found.block_size
    ladder = make_ladder(
        max_model_len=found.max_model_len,
        max_num_seqs=found.max_num_seqs,
        max_num_batched_tokens=found.max_num_batched_tokens,
        block_size=found.block_size,
        static_width=False,
    )
    assert ladder.pick_context([found.max_model_len], [0], found.max_num_batched_tokens - found.max_num_seqs + 1) is not None
