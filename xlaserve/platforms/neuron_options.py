"""What a user may set of the Neuron path, and the flags of neuronx-cc that follow from it for each family of graphs. Imports no JAX.

The flags are those of NxD Inference (`models/model_wrapper.py`): context encoding compiles at -O1 with modular flow, which is quick; token
generation at -O2, because calls between modules cost more there than they save.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from xlaserve.errors import ConfigError
from xlaserve.platforms.platform import Family

_ELSEWHERE = {
    "context_encoding_buckets": "--context-buckets",
    "token_generation_buckets": "--generate-buckets",
    "batch_size": "--max-num-seqs",
    "max_batch_size": "--max-num-seqs",
    "seq_len": "--max-model-len",
    "max_length": "--max-model-len",
    "max_context_length": "--max-model-len",
    "pa_num_blocks": "--num-blocks",
    "pa_block_size": "--block-size",
    "is_prefix_caching": "--enable-prefix-caching",
    "async_mode": "--async-scheduling",
    "torch_dtype": "--dtype",
    "tp_degree": "--tensor-parallel-size",
}
"""Names of NxD Inference for what every platform has, and the flags that set it."""

_WRAPPER = ("--cache_dir", "--no_cache", "--log_level", "--retry_failed_compilation", "--logfile", "--verbose")
"""What changes nothing in an executable: flags of the wrapper around the compiler, and logging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronOptions:
    """Options of the Neuron platform. The names are NxD Inference's where it has the same.

    Args:
        logical_nc_config: physical cores that work as one, 1 or 2; None leaves it to the compiler's target.
        cc_pipeline_tiling_factor: how finely context graphs overlap computation and collectives.
        scratchpad_page_size: MiB of a page of the scratchpad in device memory; None for the compiler's own.
        enable_long_context_mode: fewer descriptors in memory, as NxD Inference asks for at 32k tokens and beyond.
        context_encoding_flags, token_generation_flags: more flags of the compiler, for one family of graphs.
        flags: more flags of the compiler for all graphs.
        environment_flags: those that `NEURON_CC_FLAGS` gives, which `flags` come after. They alone may be there on any platform.

    Raises:
        ConfigError: a value is of the wrong kind or out of range.
    """

    logical_nc_config: int | None = None
    cc_pipeline_tiling_factor: int = 2
    scratchpad_page_size: int | None = None
    enable_long_context_mode: bool = False
    context_encoding_flags: tuple[str, ...] = ()
    token_generation_flags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    environment_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.logical_nc_config not in (None, 1, 2):
            raise ConfigError(f"logical_nc_config must be 1 or 2, got {self.logical_nc_config!r}.")
        for name in ("cc_pipeline_tiling_factor", "scratchpad_page_size"):
            value = getattr(self, name)
            if not (value is None and name == "scratchpad_page_size") and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a positive whole number, got {value!r}.")
        if type(self.enable_long_context_mode) is not bool:
            raise ConfigError(f"enable_long_context_mode must be true or false, got {self.enable_long_context_mode!r}.")

    @property
    def asked(self) -> dict[str, Any]:
        """What differs from the defaults and is not from the environment."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "environment_flags"}
        return {name: value for name, value in given.items() if value != getattr(_DEFAULTS, name)}

    def compiler_flags(self, family: Family) -> tuple[str, ...]:
        """All flags for the graphs of a family: ours, then the user's for all, then the user's for the family; the later replaces the
        earlier of the same name.
        """
        context = family == "context"
        tiling = self.cc_pipeline_tiling_factor if context else 1
        flow = "--modular-flow-mac-threshold=10 --verify-hlo=true" if context else "--verify-hlo=true"
        ours = [
            "--auto-cast=none",
            "--model-type=transformer",
            f"--tensorizer-options=--enable-ccop-compute-overlap --cc-pipeline-tiling-factor={tiling} --vectorize-strided-dma",
            f"--internal-hlo2tensorizer-options={flow}",
            "-O1" if context else "-O2",
        ]
        if self.logical_nc_config is not None:
            ours.append(f"--lnc={self.logical_nc_config}")
        if self.scratchpad_page_size is not None:
            ours.append(f"--hbm-scratchpad-page-size={self.scratchpad_page_size}")
        if self.enable_long_context_mode:
            ours += ["--internal-disable-fma-on-ios", "--disable-mixed-precision-accumulation"]
        own = {"context": self.context_encoding_flags, "generate": self.token_generation_flags, "upkeep": ()}[family]
        return _merge((*ours, *self.environment_flags, *self.flags, *own))

    def key(self, family: Family) -> str:
        """The flags that executables of a family depend on, as one text."""
        return shlex.join(flag for flag in self.compiler_flags(family) if not flag.startswith(_WRAPPER))


_DEFAULTS = NeuronOptions()


def parse_options(text: str) -> NeuronOptions:
    """The options that a JSON object gives.

    Raises:
        ConfigError: it is none; or a name is unknown, or a value of the wrong kind; the message names them.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"override_neuron_config must be a JSON object: {error}.") from error
    if not isinstance(given, dict):
        raise ConfigError(f"override_neuron_config must be a JSON object, got {text}.")
    known = {field.name for field in fields(NeuronOptions)} - {"environment_flags"}
    if unknown := sorted(set(given) - known):
        told = [f"{name} (use {_ELSEWHERE[name]})" if name in _ELSEWHERE else name for name in unknown]
        raise ConfigError(f"override_neuron_config does not know {', '.join(told)}; it knows {', '.join(sorted(known))}.")
    read: dict[str, Any] = {name: _flags(name, value) if name.endswith("flags") else value for name, value in given.items()}
    return NeuronOptions(**read)


def _flags(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return split_flags(name, value)
    if isinstance(value, list) and all(isinstance(flag, str) for flag in value):
        return tuple(value)
    raise ConfigError(f"{name} must be text or a list of texts, got {value!r}.")


def split_flags(name: str, text: str) -> tuple[str, ...]:
    """Flags as a shell reads them.

    Raises:
        ConfigError: a quote does not end.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{name}: {error} in {text!r}.") from error


def _merge(flags: Iterable[str]) -> tuple[str, ...]:
    """The last of each name, `--name value` written as `--name=value`."""
    merged: dict[str, str] = {}
    name = ""
    for flag in flags:
        if not flag.startswith("-") and name and "=" not in merged[name]:
            merged[name] = f"{merged[name]}={flag}"
            continue
        name = "-O" if flag.startswith(("-O", "--optlevel")) else flag.partition("=")[0]
        merged.pop(name, None)
        merged[name] = flag
    return tuple(merged.values())
