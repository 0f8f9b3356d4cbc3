"""The engine's options as command-line flags, defined once for every command that loads a model. One flag per `EngineConfig` field."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import asdict, is_dataclass
from typing import Any

from xlaserve.engine.environment import with_environment
from xlaserve.engine.kv_publisher import KVEventsConfig, parse_kv_events
from xlaserve.errors import ConfigError
from xlaserve.models.architectures import NAMED
from xlaserve.platforms.neuron_options import NeuronOptions, parse_options

_SUFFIXES = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2, "g": 1000**3, "G": 1024**3}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKmMgG]?)")

# Fields of EngineConfig that have a flag; `model` is the positional argument.
ENGINE_FIELDS = (
    "served_model_name",
    "load_format",
    "device",
    "dtype",
    "quantization",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "num_blocks",
    "tensor_parallel_size",
    "memory_utilization",
    "context_buckets",
    "generate_buckets",
    "neuron",
    "kernels",
    "compile_cache",
    "artifacts",
    "artifacts_only",
    "compile_threads",
    "seed",
    "max_queued_requests",
    "max_queued_tokens",
    "scheduling_policy",
    "stall_timeout",
    "grammar_timeout",
    "enable_prefix_caching",
    "async_scheduling",
    "kv_events",
)


def size(text: str) -> int:
    """A whole number with an optional suffix, as vLLM reads them: 8k is 8000, 8K is 8192; m/M and g/G likewise."""
    match = _SIZE.fullmatch(text.strip())
    number = float(match[1]) * _SUFFIXES[match[2]] if match else -1.0
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number such as 8192, 8k (8000) or 8K (8192)")
    return int(number)


def whole(text: str) -> int:
    """A positive whole number."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def longest(text: str) -> int | None:
    """A number of tokens, or None for `auto`: as many as the model and the memory allow."""
    return None if text == "auto" else size(text)


def lengths(text: str) -> tuple[int, ...]:
    """Sizes with commas between them."""
    return tuple(size(part) for part in text.split(","))


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 0.9, more than 0 and at most 1")
    return value


def neuron_options(text: str) -> NeuronOptions:
    """A JSON object of options of the Neuron platform."""
    try:
        return parse_options(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def kv_events(text: str) -> KVEventsConfig | None:
    """A JSON object of vLLM's options for KV events."""
    try:
        return parse_kv_events(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model argument and the engine's flags."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder, a .gguf file or a hub id; without it the demo model")
    group = parser.add_argument_group("engine", "What is left out is chosen to fit the model, the platform and its memory.")
    group.add_argument("--served-model-name", metavar="NAME", help="the model id that clients use (default: the model's own name)")
    weights = "auto reads the model's weights; dummy makes random ones, and takes an architecture's name as MODEL: " + ", ".join(NAMED)
    group.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help=weights)
    device = "the platform to run on: cpu, cuda, neuron or an installed package's (default: XLASERVE_PLATFORM, else the best one found)"
    group.add_argument("--device", metavar="NAME", help=device)
    group.add_argument("--dtype", default="auto", metavar="DTYPE", help="of weights and activations, such as bfloat16 (default: auto)")
    quantized = "keep weights in 8 bits and compute with integers (cpu): less memory, faster, nearly the same answers (default: off)"
    group.add_argument("--quantization", choices=("int8",), help=quantized)
    longest_help = "longest prompt and output together, in tokens; 8k, 8K; auto, the default, is what the model and the memory allow"
    group.add_argument("--max-model-len", type=longest, metavar="N", help=longest_help)
    group.add_argument("--max-num-seqs", type=whole, metavar="N", help="most sequences that are generated at the same time")
    group.add_argument("--max-num-batched-tokens", type=size, metavar="N", help="most prompt tokens computed in one step")
    group.add_argument("--block-size", type=whole, metavar="N", help="tokens per KV cache block")
    group.add_argument("--num-blocks", type=size, metavar="N", help="KV cache blocks (default: what fits into memory)")
    devices = "devices to split the model over (default: 1)"
    group.add_argument("--tensor-parallel-size", "-tp", type=whole, metavar="N", help=devices)
    memory = "share of the device's memory to fill (default: 0.9; on cpu, a sixteenth of the memory for the KV cache)"
    group.add_argument("--memory-utilization", type=share, metavar="F", help=memory)
    context = "chunk lengths in tokens to have context graphs for, such as 128,512,2048 (default: factors of two)"
    group.add_argument("--context-buckets", type=lengths, metavar="N,N", help=context)
    generate = "lengths of context in tokens to have generate graphs for; the last holds the longest sequence"
    group.add_argument("--generate-buckets", type=lengths, metavar="N,N", help=generate)
    neuron = "options of the Neuron platform, as docs/platforms.md lists them"
    group.add_argument("--override-neuron-config", dest="neuron", type=neuron_options, metavar="JSON", help=neuron)
    kernels = (
        "native kernels: on cpu where they are there (auto, the default), not (none), or as a condition (native); on cuda only with native"
    )
    group.add_argument("--kernels", choices=("auto", "none", "native"), default="auto", help=kernels)
    group.add_argument("--compile-cache", metavar="DIR", help="where compiled graphs are kept")
    group.add_argument("--artifacts", metavar="DIR", help="load graphs, and sizes not given here, from what `compile -o DIR` made")
    group.add_argument("--artifacts-only", action="store_true", help="fail, and say why, rather than compile a graph")
    group.add_argument("--compile-threads", type=whole, metavar="N", help="graphs compiled at the same time")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of requests that bring none (default: 0)")
    group.add_argument("--max-queued-requests", type=whole, default=1024, metavar="N", help="waiting requests before 503 (default: 1024)")
    group.add_argument("--max-queued-tokens", type=size, metavar="N", help="tokens of waiting prompts before 503 (default: no bound)")
    policy = "order of requests: of arrival, or of their `priority`, lower first (default: fcfs)"
    group.add_argument("--scheduling-policy", choices=("fcfs", "priority"), default="fcfs", help=policy)
    stall = "seconds of work without progress before /health says 503 (default: 300)"
    group.add_argument("--stall-timeout", type=whole, default=300, metavar="S", help=stall)
    grammar = "seconds that the schema or grammar of a structured output may take to compile (default: 5)"
    group.add_argument("--grammar-timeout", type=whole, default=5, metavar="S", help=grammar)
    prefix = "reuse what has been computed for prompts that begin alike (default: on)"
    group.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True, help=prefix)
    events = "publish over ZeroMQ what the prefix cache holds and loses, with vLLM's options (extra: kv-events)"
    group.add_argument("--kv-events-config", dest="kv_events", type=kv_events, metavar="JSON", help=events)
    ahead = "prepare the next step while the device computes one (default: on); off is slower, and for finding faults"
    group.add_argument("--async-scheduling", action=argparse.BooleanOptionalAction, default=True, help=ahead)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The parsed flags, and what the environment says of the engine, as keyword arguments for `EngineConfig`, the model left out."""
    return with_environment({name: getattr(args, name) for name in ENGINE_FIELDS}, os.environ)


def engine_arguments(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The model and the engine's flags as they would be written for another process; what has its default is left out."""
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    flags: list[str] = []
    for action in parser._actions:  # type: ignore[reportPrivateUsage]
        if action.dest in ENGINE_FIELDS and (value := getattr(args, action.dest)) != action.default:
            flag = max(action.option_strings, key=len)
            if isinstance(value, bool):
                flags.append(next(name for name in action.option_strings if name.startswith("--no-") != value))
            else:
                flags.append(f"{flag}={_as_text(value)}")
    return args.model, flags


def _as_text(value: Any) -> str:
    """A value as its flag takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, NeuronOptions):
        return json.dumps(value.asked)
    return json.dumps(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else str(value)
