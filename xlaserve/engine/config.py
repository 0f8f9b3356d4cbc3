"""How an engine is set up: `EngineConfig` as the user gives it, `Limits` as they follow from it, the model and the platform.

Parsed once, immutable, passed explicitly. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from xlaserve.buckets.ladder import LadderSizes
from xlaserve.buckets.workspace import workspace_bytes
from xlaserve.engine.kv_publisher import KVEventsConfig
from xlaserve.engine.memory_plan import SMALLER, MemoryPlan, mebibytes
from xlaserve.engine.seating import slot_bytes
from xlaserve.errors import ConfigError
from xlaserve.models.config import LoadFormat, ModelConfig, Quantization
from xlaserve.platforms.cuda import KERNEL_BLOCK
from xlaserve.platforms.neuron_options import NeuronOptions
from xlaserve.platforms.platform import KernelsChoice, Platform

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "dummy")
KERNELS = ("auto", "none", "native")
QUANTIZATIONS: tuple[Quantization, ...] = ("int8",)
SCHEDULING_POLICIES = ("fcfs", "priority")
_OPTIONAL = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "num_blocks",
    "tensor_parallel_size",
    "compile_threads",
    "max_queued_tokens",
)
_SWITCHES = ("enable_prefix_caching", "async_scheduling", "artifacts_only")
_BUCKET_LISTS = ("context_buckets", "generate_buckets")
_LOWEST = {
    **dict.fromkeys(_OPTIONAL, 1),
    "max_queued_requests": 1,
    "stall_timeout": 1,
    "grammar_timeout": 1,
    "max_model_len": 2,
    "num_blocks": 2,
    "seed": 0,
}
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What a user may set. None means: choose for the model and the platform.

    Args:
        model: a directory, a .gguf file or a hub id; None is the demo model. With dummy weights also the name of an architecture.
        load_format: "auto" reads the model's weights; "dummy" makes random ones of its shapes on the device.
        served_model_name: the name that requests use.
        device: "cpu", "cuda", "neuron" or another known platform; None takes an accelerator where there is one.
        dtype: of weights, activations and KV: "auto", "float32", "bfloat16" or "float16".
        quantization: "int8" keeps the weights of products and embeddings in 8 bits; None in `dtype`, or as the artifacts have them.
        max_model_len: longest sequence in tokens, prompt and output together.
        max_num_seqs: most sequences computed at once.
        max_num_batched_tokens: most tokens computed in one iteration.
        block_size: tokens per KV block.
        num_blocks: KV blocks, the null block included.
        tensor_parallel_size: devices that the model is split over; None is 1, or what the artifacts were made for.
        memory_utilization: share of the device's memory, up to 1, that weights, workspace and KV may fill together.
        context_buckets: chunk lengths in tokens that there are to be context graphs for, multiples of the block size.
        generate_buckets: lengths of context in tokens that there are to be generate graphs for, multiples of the block size; the longest
            must hold the longest sequence.
        neuron: what the user sets of the Neuron platform; others refuse it.
        kernels: whether graphs call native kernels: "auto" where there are some for CPU, on CUDA none; "none"; or "native", which is an
            error where there are none.
        compile_cache: directory that compiled graphs are kept in.
        artifacts: directory that `xlaserve compile -o` made; graphs are loaded from there, and sizes left open are taken from it.
        artifacts_only: fail rather than compile a graph.
        compile_threads: graphs compiled at once.
        seed: start of the random streams of requests without a seed of their own.
        enable_prefix_caching: reuse the KV of prompts, or beginnings of them, that have been computed before.
        max_queued_requests: waiting sequences beyond which requests are turned away.
        max_queued_tokens: tokens of waiting prompts beyond which requests are turned away; None sets no bound.
        stall_timeout: seconds with work and without progress after which the engine counts as unhealthy.
        grammar_timeout: seconds that compiling the form of a structured output may take.
        async_scheduling: decide the next iteration while the device computes one, and read tokens one iteration late.
        kv_events: where to publish what the prefix cache holds and loses; None publishes nothing.
        scheduling_policy: who comes first: "fcfs", in order of arrival, or "priority", by `SamplingParams.priority`, then arrival.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str | None = None
    load_format: LoadFormat = "auto"
    served_model_name: str | None = None
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    tensor_parallel_size: int | None = None
    memory_utilization: float | None = None
    context_buckets: tuple[int, ...] | None = None
    generate_buckets: tuple[int, ...] | None = None
    neuron: NeuronOptions | None = None
    kernels: KernelsChoice = "auto"
    compile_cache: str | None = None
    artifacts: str | None = None
    artifacts_only: bool = False
    compile_threads: int | None = None
    seed: int = 0
    max_queued_requests: int = 1024
    max_queued_tokens: int | None = None
    enable_prefix_caching: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    stall_timeout: int = 300
    grammar_timeout: int = 5
    async_scheduling: bool = True
    kv_events: KVEventsConfig | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.load_format not in LOAD_FORMATS:
            raise ConfigError(f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {self.load_format!r}.")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(f"quantization must be {' or '.join(QUANTIZATIONS)}, or left out, got {self.quantization!r}.")
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} must be an integer, got {value!r}.")
            if value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}.")
        if self.scheduling_policy not in SCHEDULING_POLICIES:
            raise ConfigError(f"scheduling_policy must be fcfs or priority, got {self.scheduling_policy!r}.")
        if self.kernels not in KERNELS:
            raise ConfigError(f"kernels must be one of {', '.join(KERNELS)}, got {self.kernels!r}.")
        for name in _SWITCHES:
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}.")
        share: Any = self.memory_utilization
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise ConfigError(f"memory_utilization must be more than 0 and at most 1, got {share!r}.")
        for name in _BUCKET_LISTS:
            if (lengths := getattr(self, name)) is not None:
                object.__setattr__(self, name, _lengths(name, lengths))
        if self.kv_events is not None and not self.enable_prefix_caching:
            raise ConfigError("kv_events are about the prefix cache: they need enable_prefix_caching.")
        if self.block_size is not None and self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size must be a power of two, got {self.block_size}.")


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes that graphs are made for. Fields are as in `EngineConfig`, all settled."""

    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    memory: MemoryPlan
    tensor_parallel_size: int = 1
    quantization: Quantization | None = None

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit in the KV cache."""
        return (self.num_blocks - 1) * self.block_size


def settle(config: EngineConfig, model: ModelConfig, platform: Platform, weight_bytes: int, xla_bytes: int) -> Limits:
    """Fill in what the user left open.

    Args:
        config: what the user set.
        model: the model.
        platform: where it runs.
        weight_bytes: what its weights take on one device at the dtype in use.
        xla_bytes: what those of them take that XLA multiplies, and no kernel.

    Raises:
        ConfigError: the numbers do not fit each other, the model or the memory; the message says which would.
    """
    dtype = settle_dtype(config, platform)
    shards = settle_shards(config, model, platform)
    share, sharing = model.shard(shards), platform.sharing(shards)
    block_size = config.block_size or platform.block_size
    if platform.attention == "mosaic" and block_size < KERNEL_BLOCK:
        raise ConfigError(
            f"kernels: attention's takes blocks of {KERNEL_BLOCK} tokens or more, not of {block_size}: use --block-size {KERNEL_BLOCK} or "
            "more, or --kernels auto, which does without."
        )
    if config.max_model_len is not None and config.max_model_len > model.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {model.max_position} positions that the model was made for; "
            f"use --max-model-len {model.max_position} or less."
        )
    asked_len = config.max_model_len or max(config.generate_buckets or (0,)) or None
    wanted_len = min(asked_len or model.max_position, model.max_position)
    default_tokens = max(platform.max_num_batched_tokens, *(config.context_buckets or (0,)))
    max_num_batched_tokens = config.max_num_batched_tokens or default_tokens
    # With every sequence generating, an iteration must still have room for a block of some prompt.
    most_seqs = max_num_batched_tokens - block_size + 1
    max_num_seqs = config.max_num_seqs or min(platform.max_num_seqs, max(most_seqs, 1))
    if max_num_seqs > most_seqs:
        raise ConfigError(
            f"max_num_batched_tokens {max_num_batched_tokens} is too small for max_num_seqs {max_num_seqs} and blocks of {block_size}: "
            f"use --max-num-batched-tokens {max_num_seqs + block_size - 1} or more, or a smaller --max-num-seqs."
        )
    itemsize = _ITEMSIZE[dtype]
    block_bytes = share.kv_bytes_per_token(itemsize) * block_size
    widened = 4 if platform.widens(dtype) else 0
    # Quantized weights are multiplied as they are.
    widened_weights = 0 if config.quantization else xla_bytes // itemsize * widened
    sizes = LadderSizes(
        max_model_len=wanted_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        static_width=not platform.reads_in_use,
        context_lengths=config.context_buckets or (),
        generate_lengths=config.generate_buckets or (),
        compact=platform.cpu_kernels,
        fewest_rows=platform.fewest_rows,
    )
    plan = MemoryPlan(
        device=_divided(platform.memory(), sharing),
        planned=_divided(platform.planned_memory(config.memory_utilization), sharing),
        kv_limit=_divided(platform.kv_limit(config.memory_utilization), sharing),
        weights=weight_bytes,
        slots=slot_bytes(max_num_seqs, model.vocab_size),
        workspace=0,
        block=block_bytes,
        wide_block=0 if platform.cpu_kernels else block_bytes // itemsize * widened,
    )

    def planned(length: int) -> MemoryPlan:
        """The plan for sequences of `length` tokens at most: the widths of graphs follow from that, and with them their workspace."""
        shapes = replace(sizes, max_model_len=length)
        buckets = (*shapes.context(), *shapes.generate())
        tiled, native = platform.attention == "tiled", platform.kernels != "none"
        workspace = workspace_bytes(share, itemsize, block_size, tiled, buckets, platform.experts, native)
        return replace(plan, workspace=workspace + widened_weights)

    def room(length: int) -> int:
        """Tokens that the cache holds beside such graphs."""
        blocks = config.num_blocks or planned(length).most_blocks
        if blocks is None:
            raise ConfigError(f"Platform {platform.name!r} does not report its memory; give the size of the KV cache with --num-blocks.")
        return max(0, blocks - 1) * block_size

    if room(wanted_len) < wanted_len or wanted_len < 2:
        longest = _longest(wanted_len, block_size, room)
        if asked_len is not None or longest < 2:
            raise _too_long(wanted_len, longest, planned(wanted_len), config, block_size)
        wanted_len = longest
    plan = planned(wanted_len)
    useful = max_num_seqs * -(-wanted_len // block_size) + 1
    num_blocks = config.num_blocks or min(useful, plan.most_blocks or useful)
    plan = replace(plan, num_blocks=num_blocks)
    if plan.device is not None and plan.total > plan.device:
        raise ConfigError(f"The plan of memory does not fit the device: {plan.describe()}. {plan.remedy(plan.total - plan.device)}")
    return Limits(
        dtype=dtype,
        max_model_len=wanted_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        memory=plan,
        tensor_parallel_size=shards,
        quantization=config.quantization,
    )


def _longest(most: int, block_size: int, room: Callable[[int], int]) -> int:
    """The longest sequence, at most `most` tokens, that the cache beside its graphs holds: the longer, the less room."""
    low, high = 0, -(-most // block_size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room(middle * block_size) >= middle * block_size else (low, middle - 1)
    return min(most, low * block_size)


def _too_long(wanted: int, longest: int, plan: MemoryPlan, config: EngineConfig, block_size: int) -> ConfigError:
    """Why sequences of `wanted` tokens cannot be, and which could."""
    shorter = f"Use --max-model-len {longest} or less" if longest >= 2 else ""
    needed = -(-max(wanted, 2) // block_size) + 1
    if config.num_blocks is not None:
        return ConfigError(
            f"max_model_len {wanted} does not fit: the KV cache holds {(config.num_blocks - 1) * block_size} tokens "
            f"({config.num_blocks - 1} blocks of {block_size}, {plan.block / 2**20:.1f} MiB each). "
            f"{f'{shorter}, or ' if shorter else 'Use '}--num-blocks {needed} or more."
        )
    assert plan.planned is not None
    left = max(0, plan.planned - plan.total)
    beside = f"weights {mebibytes(plan.weights)}, slot state {mebibytes(2 * plan.slots)} and workspace {mebibytes(plan.workspace)}"
    limit = "" if plan.kv_limit is None else f", and at most {mebibytes(plan.kv_limit)} go to it unless --memory-utilization is given"
    return ConfigError(
        f"max_model_len {wanted} does not fit: it needs {mebibytes(needed * plan.block)} of KV cache. Of the {mebibytes(plan.planned)} "
        f"that may be used, {beside} leave {mebibytes(left)}{limit}. "
        f"{f'{shorter}.' if shorter else SMALLER}"
    )


def _lengths(name: str, lengths: object) -> tuple[int, ...]:
    """A list of bucket lengths, in order."""
    listed = tuple(lengths) if isinstance(lengths, list | tuple) else ()
    if not listed or any(type(length) is not int or length < 1 for length in listed) or len(set(listed)) < len(listed):
        raise ConfigError(f"{name} must be different positive whole numbers, got {lengths!r}.")
    return tuple(sorted(listed))


def _divided(size: int | None, sharing: int) -> int | None:
    return None if size is None else size // sharing


def settle_shards(config: EngineConfig, model: ModelConfig, platform: Platform) -> int:
    """The devices that the model is split over.

    Raises:
        ConfigError: the model cannot be split like that, or the platform does not join so many devices; the message says what works.
    """
    shards = config.tensor_parallel_size or 1
    joined = platform.joined_devices()
    works = [n for n in model.shard_counts if joined is None or n in joined]
    remedy = f"Use --tensor-parallel-size {works[0]}." if len(works) == 1 else f"Sizes that work: {', '.join(map(str, works))}."
    if (unsplit := model.unsplit(shards)) is not None:
        raise ConfigError(f"tensor_parallel_size {shards} does not fit the model: its {unsplit} cannot be split over {shards}. {remedy}")
    if joined is not None and shards not in joined:
        raise ConfigError(
            f"tensor_parallel_size {shards} is not among the numbers of devices that this platform joins, {', '.join(map(str, joined))}. "
            f"{remedy}"
        )
    return shards


def check_experts(config: EngineConfig, model: ModelConfig) -> None:
    """Refuse what a mixture of experts cannot be computed with.

    Raises:
        ConfigError: its weights are to be quantized.
    """
    if model.experts is not None and config.quantization is not None:
        raise ConfigError(
            f"quantization {config.quantization!r} is not for a mixture of experts, which {model.family} is: its experts are computed "
            "in the dtype so far. Leave out --quantization, or name a model without experts."
        )


def settle_dtype(config: EngineConfig, platform: Platform) -> str:
    """The dtype of weights and KV."""
    return platform.dtype if config.dtype == "auto" else config.dtype
