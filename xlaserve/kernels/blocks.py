"""KV blocks copied where they lie, as one call of the CPU kernels: it costs what is copied, however large the cache is."""

from __future__ import annotations

import jax
from jax import Array

COPY_BLOCKS = "xlaserve_copy_blocks"
"""Name of the custom call."""


def copy_in_place(kv: tuple[Array, ...], source: Array, target: Array) -> tuple[Array, ...]:
    """Copy whole blocks, in all layers, as `xlaserve.paged.attention.copy_blocks` does. Donated caches are updated in place.

    Args:
        kv: of any type, each `[layers, num_blocks, ...]`.
        source, target: int32 `[N]`; no block is both read and written, except that the null block pads both.
    """
    results = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in kv)
    call = jax.ffi.ffi_call(COPY_BLOCKS, results, input_output_aliases={2 + i: i for i in range(len(kv))})
    return tuple(call(source, target, *kv))
