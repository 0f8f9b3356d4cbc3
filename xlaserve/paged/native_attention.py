"""Attention by a native kernel, such as one written in NKI: registered by name, chosen by a platform object that gives this name as its
`attention`, and called as a custom call where graphs are lowered for Neuron. Kernels come with their toolchain; none is part of xlaserve.
"""

from __future__ import annotations

from typing import Protocol

import jax

from xlaserve.errors import ConfigError

TARGET = "AwsNeuronCustomNativeKernel"
BUILT_IN = ("tiled", "gather", "mosaic")
"""Implementations that are part of xlaserve, and no kernels of this kind."""


class NativeKernel(Protocol):
    """Compiles a kernel for given shapes."""

    def __call__(self, operands: tuple[jax.ShapeDtypeStruct, ...], *, window: int | None, softcap: float | None) -> str:
        """The `backend_config` of the custom call, base64 of JSON as `nki` makes it.

        Args:
            operands: of the call: scaled queries `[S, kv_heads, groups * L, head_dim]`; keys and values
                `[num_blocks, kv_heads, block_size, head_dim]`, the new ones already in them; block tables int32 `[S, P]`; positions int32
                `[S, L]`. The result is float32 and shaped as the queries.
            window: keys that each query sees, itself included; None for all earlier ones.
            softcap: bound of the scores, `cap * tanh(score / cap)`.
        """
        ...


_kernels: dict[str, NativeKernel] = {}


def register_kernel(name: str, kernel: NativeKernel) -> None:
    """Make a kernel known. A package that brings one calls this where it defines its `Platform`.

    Raises:
        ConfigError: the name is taken.
    """
    if name in BUILT_IN or _kernels.get(name, kernel) is not kernel:
        raise ConfigError(f"An attention kernel called {name!r} exists already.")
    _kernels[name] = kernel


def find_kernel(name: str) -> NativeKernel:
    """The kernel of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _kernels:
        known = ", ".join((*BUILT_IN, *_kernels))
        raise ConfigError(f"There is no attention kernel {name!r}, only {known}. Install the package that brings it.")
    return _kernels[name]
