"""How an engine is set up: `EngineConfig` as the user gives it, `Limits` as they follow from it, the model and the platform.

Parsed once, immutable, passed explicitly. Imports no JAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xlaserve.engine.seating import slot_bytes
from xlaserve.errors import ConfigError
from xlaserve.models.config import ModelConfig
from xlaserve.platforms.platform import Platform

DTYPES = ("auto", "float32", "bfloat16", "float16")
SCHEDULING_POLICIES = ("fcfs", "priority")
_OPTIONAL = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks", "compile_threads", "max_queued_tokens")
_SWITCHES = ("enable_prefix_caching", "async_scheduling", "artifacts_only")
_LOWEST = {**dict.fromkeys(_OPTIONAL, 1), "max_queued_requests": 1, "stall_timeout": 1, "max_model_len": 2, "num_blocks": 2, "seed": 0}
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What a user may set. None means: choose for the model and the platform.

    Args:
        model: a directory, a .gguf file or a hub id; None is the demo model.
        served_model_name: the name that requests use.
        device: "cpu", "cuda", "neuron" or another known platform; None takes an accelerator where there is one.
        dtype: of weights and KV: "auto", "float32", "bfloat16" or "float16".
        max_model_len: longest sequence in tokens, prompt and output together.
        max_num_seqs: most sequences computed at once.
        max_num_batched_tokens: most tokens computed in one iteration.
        block_size: tokens per KV block.
        num_blocks: KV blocks, the null block included.
        compile_cache: directory that compiled graphs are kept in.
        artifacts: directory that `xlaserve compile -o` made; graphs are loaded from there, and sizes left open are taken from it.
        artifacts_only: fail rather than compile a graph.
        compile_threads: graphs compiled at once.
        seed: start of the random streams of requests without a seed of their own.
        enable_prefix_caching: reuse the KV of prompts, or beginnings of them, that have been computed before.
        max_queued_requests: waiting sequences beyond which requests are turned away.
        max_queued_tokens: tokens of waiting prompts beyond which requests are turned away; None sets no bound.
        stall_timeout: seconds with work and without progress after which the engine counts as unhealthy.
        async_scheduling: decide the next iteration while the device computes one, and read tokens one iteration late.
        scheduling_policy: who comes first: "fcfs", in order of arrival, or "priority", by `SamplingParams.priority`, then arrival.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str | None = None
    served_model_name: str | None = None
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
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
    async_scheduling: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")
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
        for name in _SWITCHES:
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}.")
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
    kv_bytes: int

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit in the KV cache."""
        return (self.num_blocks - 1) * self.block_size


def settle(config: EngineConfig, model: ModelConfig, platform: Platform, weight_bytes: int) -> Limits:
    """Fill in what the user left open.

    Args:
        config: what the user set.
        model: the model.
        platform: where it runs.
        weight_bytes: what its weights take at the dtype in use.

    Raises:
        ConfigError: the numbers do not fit each other, the model or the memory; the message says which would.
    """
    dtype = settle_dtype(config, platform)
    block_size = config.block_size or platform.block_size
    if config.max_model_len is not None and config.max_model_len > model.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {model.max_position} positions that the model was made for; "
            f"use --max-model-len {model.max_position} or less."
        )
    wanted_len = config.max_model_len or model.max_position
    max_num_batched_tokens = config.max_num_batched_tokens or platform.max_num_batched_tokens
    # With every sequence generating, an iteration must still have room for a block of some prompt.
    most_seqs = max_num_batched_tokens - block_size + 1
    max_num_seqs = config.max_num_seqs or min(platform.max_num_seqs, max(most_seqs, 1))
    if max_num_seqs > most_seqs:
        raise ConfigError(
            f"max_num_batched_tokens {max_num_batched_tokens} is too small for max_num_seqs {max_num_seqs} and blocks of {block_size}: "
            f"use --max-num-batched-tokens {max_num_seqs + block_size - 1} or more, or a smaller --max-num-seqs."
        )
    block_bytes = model.kv_bytes_per_token(_ITEMSIZE[dtype]) * block_size
    num_blocks = config.num_blocks
    if num_blocks is None:
        useful = max_num_seqs * -(-wanted_len // block_size)
        num_blocks = min(useful, platform.kv_budget(weight_bytes + slot_bytes(max_num_seqs, model.vocab_size)) // block_bytes) + 1
    tokens = (num_blocks - 1) * block_size
    if config.max_model_len is None:
        wanted_len = min(wanted_len, tokens)
    if wanted_len > tokens or wanted_len < 2:
        needed = -(-max(wanted_len, 2) // block_size) + 1
        shorter = f"--max-model-len {tokens} or less, or " if tokens >= 2 else ""
        raise ConfigError(
            f"max_model_len {wanted_len} does not fit: the KV cache holds {tokens} tokens ({num_blocks - 1} blocks of {block_size}, "
            f"{block_bytes / 2**20:.1f} MiB each). Use {shorter}--num-blocks {needed} or more."
        )
    return Limits(
        dtype=dtype,
        max_model_len=wanted_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        kv_bytes=num_blocks * block_bytes,
    )


def settle_dtype(config: EngineConfig, platform: Platform) -> str:
    """The dtype of weights and KV."""
    return platform.dtype if config.dtype == "auto" else config.dtype
