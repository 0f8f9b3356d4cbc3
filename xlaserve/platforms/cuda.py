"""NVIDIA GPUs through JAX's CUDA plugin: bfloat16, KV in device memory."""

from __future__ import annotations

import os
from dataclasses import replace

from xlaserve.errors import ConfigError
from xlaserve.platforms.platform import DEFAULT_UTILIZATION, Autotuning, KernelsChoice, Platform

_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_UNPLANNED = 1 / 64
"""Share of the client's memory that is left free, for what lies between arrays."""


KERNELS = "mosaic-1"
"""The kernels for Hopper cards, and how often what they compute has changed."""

KERNEL_DTYPES, KERNEL_HEAD_DIMS, KERNEL_BLOCK = ("bfloat16", "float16"), (64, 128), 8
"""What they take: types, numbers of a head, and the fewest tokens of a block."""

HOPPER = "9.0"
"""Compute capability of the cards whose instructions the kernels use; later ones have others in their place."""

COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
"""What XLA may put into a command buffer (a CUDA graph): what it does by itself, and loops. A loop or a conditional outside of one makes
the host wait for the device at each turn, so that no step could be dispatched before the one before has ended."""


class CUDAPlatform(Platform):
    """CUDA through JAX's plugin, whose client takes a fixed share of the card when it starts and reports that as the device's memory."""

    __slots__ = ()

    def reserve(self, utilization: float | None, devices: int) -> None:
        """Have the client take the share that is wanted instead of its own three quarters, unless the user has told it another."""
        os.environ.setdefault(_FRACTION, f"{utilization or DEFAULT_UTILIZATION:.4f}")

    def with_kernels(self, kernels: KernelsChoice, dtype: str, head_dim: int, *, here: bool = True) -> Platform:
        """The platform with attention as a kernel where that is asked for: it has not been measured, so nothing else chooses it."""
        why = ""
        if dtype not in KERNEL_DTYPES:
            why = f"attention's computes in {' and '.join(KERNEL_DTYPES)}, not in {dtype}"
        elif head_dim not in KERNEL_HEAD_DIMS:
            why = f"attention's takes heads of {' or '.join(map(str, KERNEL_HEAD_DIMS))} numbers, and this model's have {head_dim}"
        elif here and self.available() and (found := self.devices()[0].compute_capability) != HOPPER:
            why = f"attention's is for compute capability {HOPPER}, and this card has {found}"
        if kernels == "native" and why:
            raise ConfigError(f"kernels: there is no native kernel here: {why}. Or use --kernels auto, which does without.")
        if kernels == "native":
            return replace(self, attention="mosaic", kernels=KERNELS, kernels_note="attention")
        return (
            self
            if why or kernels == "none"
            else replace(self, kernels_note="--kernels native has one for attention, not yet measured on a card")
        )

    def planned_memory(self, utilization: float | None) -> int | None:
        """What the client has taken, less a little: the share is in it already."""
        memory = self.memory()
        return None if memory is None else int(memory * (1 - _UNPLANNED))


CUDA = CUDAPlatform(
    name="cuda",
    jax_name="cuda",
    dtype="bfloat16",
    block_size=16,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    attention="tiled",
    branches=True,
    top_k="sort",
    compiler_options=(
        ("xla_gpu_enable_command_buffer", COMMANDS),
        # A kernel that reads a slice of an array is then taken together with it into something that no command buffer holds.
        ("xla_gpu_enable_dynamic_slice_fusion", False),
        # It takes four fifths of the card for all there is, and where weights and KV alone are more, computes again what is small.
        ("xla_disable_hlo_passes", "rematerialization"),
    ),
    autotuning=Autotuning(
        directory="xla_gpu_per_fusion_autotune_cache_dir",
        complete=(("xla_gpu_require_complete_aot_autotune_results", True),),
        # Where XLA cannot measure it takes the first of Triton's sizes that compiles, the smallest: 16 x 8 results a program, in one stage.
        without=(("xla_gpu_enable_triton_gemm", False),),
        chosen_by="products go to cuBLASLt, which chooses on the card",
    ),
    # Products of 2 to 7 rows are padded to 8, for cuBLASLt by a kernel before each; and all of them read the same weights.
    fewest_rows=8,
    install="Install JAX's CUDA plugin with `pip install 'xlaserve[cuda13]'` (or [cuda12]) and check the driver with `nvidia-smi`.",
)
