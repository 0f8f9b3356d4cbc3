"""What xlaserve needs to know of a PJRT platform: its defaults, its memory and which implementations its compiler takes.

A third party adds one by naming a `Platform` in the entry-point group `xlaserve.platforms`. Imports no JAX until asked for devices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xlaserve.errors import ConfigError

if TYPE_CHECKING:
    from xlaserve.platforms.neuron_options import NeuronOptions
    from xlaserve.platforms.neuron_targets import Target

DEFAULT_UTILIZATION = 0.9
"""Share of a device's memory that is planned for; the rest is for the driver, for code and for what lies between arrays."""

Device = Any
"""A `jax.Device`, which its package does not declare as a type."""

TopKKind = Literal["sort", "neuron"]

ExpertsKind = Literal["chosen", "all"]
KernelsChoice = Literal["auto", "none", "native"]

Family = Literal["context", "generate", "upkeep"]
"""Graphs of one kind: context encoding, token generation, and what tends the state between steps."""

FAMILIES: tuple[Family, ...] = ("context", "generate", "upkeep")


@dataclass(frozen=True, slots=True)
class Autotuning:
    """How a compiler that measures kernels on the device is told what was measured before.

    Args:
        directory: its option that names a directory of results, which it reads and adds to.
        complete: options with which a kernel that has none there is an error.
        without: options for a device that is not here and has none: what then decides how kernels are computed.
        chosen_by: what that is, for a person.
    """

    directory: str
    complete: tuple[tuple[str, str | bool], ...]
    without: tuple[tuple[str, str | bool], ...]
    chosen_by: str


@dataclass(frozen=True, slots=True)
class Platform:
    """One PJRT platform.

    Args:
        name: what the user calls it: "cpu", "cuda", "neuron".
        jax_name: what JAX calls it.
        dtype: weights and KV where the user says "auto".
        block_size: tokens per KV block.
        max_num_seqs: sequences computed at once, where the user says nothing.
        max_num_batched_tokens: tokens of one context graph, likewise.
        attention: "tiled" loops over the KV in use, with a trip count known only at run time; "gather" reads whole block tables; "mosaic"
            is the kernel for NVIDIA's Hopper cards in `xlaserve.paged.mosaic_attention`; any other name is a kernel's that
            `xlaserve.paged.native_attention.register_kernel` knows.
        branches: whether a graph may hold conditionals.
        top_k: "sort" takes XLA's own top-k, "neuron" the AwsNeuronTopK custom call.
        install: what to do where the platform is asked for and absent.
        experts: how a mixture of experts is computed: "chosen" takes one token and expert after the other; "all" multiplies by all experts,
            or by copies of the chosen ones where these are less.
        kernels: the native kernels that graphs may call, as `with_kernels` settles it: "none", or their library's version.
        kernels_note: what a person should know of that: their instruction set, or why there are none; empty where the platform has no such
            kernels at all.
        quantizations: how weights can be quantized.
        compiler_options: XLA's, by name, for every graph; executables depend on them.
        autotuning: how its compiler takes what was measured before; None where it measures nothing.
        fewest_rows: sequences that a generate graph for more than one is for, at least: where products of fewer rows are no faster.
    """

    name: str
    jax_name: str
    dtype: str
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    attention: str
    branches: bool
    top_k: TopKKind
    install: str
    experts: ExpertsKind = "all"
    kernels: str = "none"
    kernels_note: str = ""
    quantizations: tuple[str, ...] = ()
    compiler_options: tuple[tuple[str, str | bool], ...] = ()
    autotuning: Autotuning | None = None
    fewest_rows: int = 1

    @property
    def reads_in_use(self) -> bool:
        """Whether attention reads the KV in use and no more, so that one width of tables serves all lengths."""
        return self.attention in ("tiled", "mosaic")

    def configured(self, neuron: NeuronOptions | None) -> Platform:
        """The platform as the user wants it.

        Args:
            neuron: options of Neuron's, which other platforms have none of.

        Raises:
            ConfigError: options are given that this platform does not have.
        """
        if neuron is not None and neuron.asked:
            given = ", ".join(f"{name} {value!r}" for name, value in neuron.asked.items())
            raise ConfigError(
                f"neuron: {given} is for the platform neuron, and this one is {self.name}: "
                "leave out --override-neuron-config, or use --device neuron."
            )
        return self

    @property
    def cpu_kernels(self) -> bool:
        """Whether graphs call the kernels for CPU; those of other platforms are kinds of attention."""
        return self.kernels.startswith("cpu-")

    def with_kernels(self, kernels: KernelsChoice, dtype: str, head_dim: int, *, here: bool = True) -> Platform:
        """The platform with its native kernels, if they are wanted and it has some.

        Args:
            kernels: what the user wants.
            dtype: of activations and KV.
            head_dim: numbers in a head of the model.
            here: whether it is for a device of this machine.

        Raises:
            ConfigError: "native", and there are none.
        """
        if kernels == "native":
            raise ConfigError(f"kernels: there are none for the platform {self.name}: leave out --kernels native.")
        return self

    def check_quantization(self, quantization: str | None) -> None:
        """Refuse what its graphs cannot compute with.

        Raises:
            ConfigError: the platform does not have it; the message says what to do.
        """
        if quantization is None or quantization in self.quantizations:
            return
        has = f"has {' and '.join(self.quantizations)}" if self.quantizations else "has none"
        raise ConfigError(
            f"quantization {quantization!r} is not for the platform {self.name}, which {has} so far: "
            "leave out --quantization, or use --device cpu, which has int8."
        )

    @property
    def here(self) -> bool:
        """Whether its devices are of this machine, so that kernels can be measured."""
        return True

    def devices(self) -> list[Device]:
        """The platform's devices.

        Raises:
            ConfigError: JAX finds none; the message says what to install.
        """
        import jax

        try:
            return jax.devices(self.jax_name)
        except RuntimeError as error:
            raise ConfigError(
                f"Platform {self.name!r} has no device here: {error}. {self.install} "
                "`xlaserve doctor` shows what is here and what is missing."
            ) from error

    def available(self) -> bool:
        """Whether JAX finds a device of this platform."""
        try:
            return bool(self.devices())
        except ConfigError:
            return False

    def reserve(self, utilization: float | None, devices: int) -> None:
        """Tell JAX's client of the platform, which starts when its devices are first asked for, what it will be given.

        Args:
            utilization: the share of a device's memory to use; None for the default.
            devices: how many are wanted.
        """

    def first_devices(self, count: int) -> list[Device]:
        """The devices of an engine that is split over `count`.

        Raises:
            ConfigError: there are fewer.
        """
        found = self.devices()
        if len(found) < count:
            raise ConfigError(
                f"tensor_parallel_size {count} needs {count} devices, and platform {self.name!r} has {len(found)} here. "
                f"{self.more_devices(count)}Use --tensor-parallel-size {len(found)} or less."
            )
        return found[:count]

    def more_devices(self, count: int) -> str:
        """What to do about too few devices, as a sentence with a space after it; empty where only other hardware helps."""
        return ""

    def joined_devices(self) -> tuple[int, ...] | None:
        """Numbers of devices over which a model can be split; None for any number."""
        return None

    def sharing(self, devices: int) -> int:
        """How many of an engine's devices share what `memory` tells: 1, as each has its own."""
        return 1

    def memory(self) -> int | None:
        """Bytes of a device's memory that JAX's client can use, or None where there is no device or it does not tell."""
        if not self.available():
            return None
        stats = self.devices()[0].memory_stats() or {}
        return int(stats.get("bytes_limit", 0)) or None

    def planned_memory(self, utilization: float | None) -> int | None:
        """Bytes of a device's memory that an engine may fill with all it has; None where `memory` does not tell.

        Args:
            utilization: the share that the user wants used; None for the default, which is the same on every start of the same machine.
        """
        memory = self.memory()
        return None if memory is None else int(memory * (utilization or DEFAULT_UTILIZATION))

    def kv_limit(self, utilization: float | None) -> int | None:
        """Most bytes to give to the KV cache, whatever is left; None for no such limit."""
        return None

    def widens(self, dtype: str) -> bool:
        """Whether the compiler computes on float32 copies of whole arrays of this type, for which there must be room."""
        return False

    def compiling(self, family: Family) -> AbstractContextManager[None]:
        """What must hold while a graph of a family is compiled, in whatever thread."""
        return nullcontext()

    def lint_target(self) -> Target | None:
        """What graphs are linted for where they are compiled; None where nothing is known of what the compiler refuses."""
        return None

    def trim(self) -> None:
        """Offer the machine what arrays have given back. Here nothing is to be done: the device's allocator has it."""

    def fingerprint(self) -> dict[str, str]:
        """What else an executable for this platform depends on, as names and values to compare."""
        device = self.devices()[0]
        return {"device_kind": device.device_kind, "platform_version": str(device.client.platform_version)}
