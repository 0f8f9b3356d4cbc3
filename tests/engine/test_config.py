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
    """A platform with a given number of bytes, all of which may be used; None says nothing."""

    budget: int | None = 1 << 30
    widened: bool = False

    def memory(self) -> int | None:
        return self.budget

    def planned_memory(self, utilization: float | None) -> int | None:
        return None if self.budget is None else int(self.budget * (utilization or 1))

    def widens(self, dtype: str) -> bool:
        return self.widened and dtype != "float32"


PLATFORM = FixedMemory("test", "cpu", "float32", 16, 32, 512, "tiled", True, "sort", "")


class SharedMemory(FixedMemory):
    """A platform whose devices share its memory, and which joins some numbers of them."""

    __slots__ = ()

    def sharing(self, devices: int) -> int:
        return devices

    def joined_devices(self) -> tuple[int, ...]:
        return (1, 2, 8)


def limits(platform: Platform = PLATFORM, weight_bytes: int = 0, **options: Any) -> Limits:
    return settle(EngineConfig(**options), MODEL, platform, weight_bytes, weight_bytes)


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
    assert found.memory.kv == found.num_blocks * 16 * TOKEN_BYTES


def fixed_bytes(**options: Any) -> int:
    """What weights of no size leave out: slot state and workspace."""
    memory = limits(**options).memory
    return memory.total - memory.kv


def test_memory_bounds_blocks_and_length() -> None:
    block = 16 * TOKEN_BYTES
    tight = replace(PLATFORM, budget=fixed_bytes(max_model_len=99 * 16) + 101 * block - 1)
    assert limits(tight).num_blocks == 100
    assert limits(tight).max_model_len == 99 * 16, "one block is the null block"
    assert limits(tight).memory.total <= tight.budget
    assert 50 <= limits(tight, weight_bytes=50 * block).num_blocks <= 55, "shorter tables leave a little"
    assert limits(tight, max_model_len=40).num_blocks == 32 * 3 + 1, "no more than all sequences could use"


def test_the_plan_tells_what_the_memory_is_for() -> None:
    memory = limits(weight_bytes=5 << 20).memory
    assert memory.weights == 5 << 20
    assert memory.slots == slot_bytes(32, MODEL.vocab_size)
    assert memory.total == memory.weights + 2 * memory.slots + memory.workspace + memory.kv
    assert re.fullmatch(r"\d+ MiB of 1,024 MiB: weights 5 MiB, slot state \d+ MiB, workspace up to \d+ MiB, KV 32 MiB", memory.describe())


def test_types_that_the_compiler_widens_take_more() -> None:
    block = 16 * TOKEN_BYTES // 2
    plain = limits(dtype="bfloat16", max_model_len=64, weight_bytes=2000)
    wide = limits(replace(PLATFORM, widened=True), dtype="bfloat16", max_model_len=64, weight_bytes=2000)
    assert wide.memory.total == plain.memory.total + 2 * 2000 + plain.num_blocks * 2 * block
    tight = replace(PLATFORM, widened=True, budget=fixed_bytes(dtype="bfloat16", max_model_len=64) + 60 * block)
    assert limits(tight, dtype="bfloat16", max_model_len=64).num_blocks == 20


def test_a_share_of_the_memory() -> None:
    half, full = (limits(replace(PLATFORM, budget=4 << 20), max_num_seqs=1, memory_utilization=share) for share in (0.5, 1))
    assert half.memory.total <= 2 << 20 < full.memory.total <= 4 << 20
    assert half.num_blocks < full.num_blocks


def test_a_length_that_cannot_fit_is_refused_with_the_largest_that_can() -> None:
    tight = replace(PLATFORM, budget=fixed_bytes() + 50 * 16 * TOKEN_BYTES)
    longest = limits(tight).max_model_len
    with pytest.raises(
        ConfigError, match=rf"max_model_len {longest + 1} does not fit.*weights 0 MiB.*Use --max-model-len {longest} or less"
    ):
        limits(tight, max_model_len=longest + 1)
    assert limits(tight, max_model_len=longest).max_model_len == longest


def test_blocks_that_are_asked_for_must_be_in_the_device() -> None:
    small = replace(PLATFORM, budget=fixed_bytes(max_model_len=1584) + 100 * 16 * TOKEN_BYTES)
    assert limits(small, num_blocks=100, max_model_len=1584).num_blocks == 100
    with pytest.raises(ConfigError, match=r"does not fit.*Use --num-blocks 100 or less"):
        limits(small, num_blocks=101, max_model_len=1584)


def test_a_device_that_does_not_tell_its_memory_asks_for_a_number() -> None:
    silent = replace(PLATFORM, budget=None)
    with pytest.raises(ConfigError, match=r"'test' does not report its memory.*--num-blocks"):
        limits(silent)
    assert limits(silent, num_blocks=12).num_blocks == 12
    assert "of unknown:" in limits(silent, num_blocks=12).memory.describe()


def test_compiled_graphs_are_held_against_the_plan() -> None:
    memory = limits(replace(PLATFORM, budget=64 << 20), num_blocks=33).memory
    spare = memory.peak_workspace + memory.device - memory.total  # type: ignore[operator]
    assert memory.compare(memory.peak_workspace, "generate-1-8").startswith("workspace is ")
    assert memory.compare(spare, "generate-1-8").startswith("warning: workspace is ")
    with pytest.raises(ConfigError, match=r"plan of memory does not hold.*for generate-1-8.*Use --num-blocks 32 or less\."):
        memory.compare(spare + 1, "generate-1-8")
    with pytest.raises(ConfigError, match="smaller --max-num-seqs, --max-num-batched-tokens or model"):
        memory.compare(1 << 40, "generate-1-8")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"context_buckets": [64, 32]}, {"max_num_batched_tokens": 512, "max_model_len": 2048}),
        ({"context_buckets": (1024,)}, {"max_num_batched_tokens": 1024}),
        ({"generate_buckets": (512, 256)}, {"max_model_len": 512}),
    ],
)
def test_bucket_lists_settle_what_was_left_open(options: dict[str, Any], wanted: dict[str, int]) -> None:
    found = limits(**options)
    assert {name: getattr(found, name) for name in wanted} == wanted


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


def test_blocks_are_as_large_as_the_kernel_of_attention_takes() -> None:
    mosaic = replace(PLATFORM, attention="mosaic")
    assert limits(mosaic, block_size=8).block_size == 8
    with pytest.raises(ConfigError, match=r"blocks of 8 tokens or more, not of 4: use --block-size 8 or more, or --kernels auto"):
        limits(mosaic, block_size=4)


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
        "grammar_timeout",
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
        ({"memory_utilization": 0}, "memory_utilization must be more than 0 and at most 1, got 0"),
        ({"memory_utilization": 1.01}, "got 1.01"),
        ({"memory_utilization": True}, "got True"),
        ({"memory_utilization": float("nan")}, "got nan"),
        ({"context_buckets": []}, "context_buckets must be different positive whole numbers"),
        ({"context_buckets": [16, 16]}, r"whole numbers, got \[16, 16\]"),
        ({"generate_buckets": (0, 16)}, "generate_buckets must be different positive"),
        ({"generate_buckets": "128,256"}, "generate_buckets must be .*'128,256'"),
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


@given(OPTIONS, st.sampled_from((96 << 20, 128 << 20, 1 << 30)))
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


def test_a_split_model_is_planned_for_each_device() -> None:
    """Heads, MLP and KV are shares of one; logits, slot state and what the host sends are whole."""
    whole, half = limits(weight_bytes=1000), limits(weight_bytes=500, tensor_parallel_size=2)
    assert (whole.tensor_parallel_size, half.tensor_parallel_size) == (1, 2)
    assert half.memory.block == whole.memory.block // 2 == 16 * TOKEN_BYTES // 2
    assert half.memory.slots == whole.memory.slots
    assert whole.memory.workspace / 2 < half.memory.workspace < whole.memory.workspace
    assert half.memory.device == whole.memory.device, "each device has its own memory"
    shared = limits(SharedMemory("test", "cpu", "float32", 16, 32, 512, "tiled", True, "sort", ""), tensor_parallel_size=2)
    assert shared.memory.device == (1 << 30) // 2, "or the devices share one"
    copied = limits(weight_bytes=250, tensor_parallel_size=4)
    assert copied.memory.block == half.memory.block, "two key heads on four devices: each has one"


@pytest.mark.parametrize(
    ("size", "model", "message"),
    [
        (3, {}, "tensor_parallel_size 3 does not fit the model: its 4 query heads cannot be split over 3. Sizes that work: 1, 2."),
        (4, {}, "tensor_parallel_size 4 is not among the numbers of devices that this platform joins, 1, 2, 8. Sizes that work: 1, 2."),
        (2, {"intermediate_size": 129}, "its MLP width of 129 cannot be split over 2. Use --tensor-parallel-size 1."),
        (8, {"num_heads": 24, "num_kv_heads": 3}, "its 3 key and value heads cannot be split over 8. Use --tensor-parallel-size 1."),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_those_that_can(size: int, model: dict[str, int], message: str) -> None:
    platform = SharedMemory("test", "cpu", "float32", 16, 32, 512, "tiled", True, "sort", "")
    with pytest.raises(ConfigError, match=re.escape(message)):
        settle(EngineConfig(tensor_parallel_size=size), replace(MODEL, **model), platform, 0, 0)


def test_the_size_is_a_positive_whole_number() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size must be at least 1, got 0\."):
        EngineConfig(tensor_parallel_size=0)
