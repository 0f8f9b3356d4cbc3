"""Environment variables that stand for options of the engine, ours and those of other Neuron stacks: read once, where options come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlaserve.buckets.manifest import NAME as MANIFEST
from xlaserve.errors import ConfigError
from xlaserve.platforms.neuron_options import NeuronOptions, split_flags

_BUCKETS = {"NEURON_CONTEXT_LENGTH_BUCKETS": "context_buckets", "NEURON_TOKEN_GEN_BUCKETS": "generate_buckets"}


def with_environment(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Options for `EngineConfig`: those given, and where one is missing or None, what a variable says. Empty variables say nothing.

    `XLASERVE_PLATFORM` is the device; `NEURON_CONTEXT_LENGTH_BUCKETS` and `NEURON_TOKEN_GEN_BUCKETS` are lists of buckets;
    `NEURON_CC_FLAGS` are flags of Neuron's compiler, beside those in `neuron`. `NEURON_COMPILED_ARTIFACTS` is a directory to load
    compiled graphs from, and to keep them in where it holds none: `artifacts` where `xlaserve compile -o` made it, else `compile_cache`.

    Raises:
        ConfigError: a variable cannot be read; the message names it.
    """
    found: dict[str, Any] = {}
    if device := environ.get("XLASERVE_PLATFORM"):
        found["device"] = device
    if directory := environ.get("NEURON_COMPILED_ARTIFACTS"):
        made = (Path(directory).expanduser() / MANIFEST).is_file()
        found["artifacts" if made else "compile_cache"] = directory
    for variable, name in _BUCKETS.items():
        if text := environ.get(variable):
            found[name] = _lengths(variable, text)
    merged = {**options, **{name: value for name, value in found.items() if options.get(name) is None}}
    if text := environ.get("NEURON_CC_FLAGS"):
        neuron = merged.get("neuron") or NeuronOptions()
        merged["neuron"] = replace(neuron, environment_flags=split_flags("NEURON_CC_FLAGS", text))
    return merged


def _lengths(variable: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{variable} must be whole numbers with commas between them, such as 128,512,2048; got {text!r}.")
    return tuple(int(part) for part in parts)
