"""JAX's interpreter of Mosaic GPU kernels, with what it lacks for ours: the card's matrix instruction takes its left side from registers
too, the interpreter from shared memory only.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

_CALLBACKS = "jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks"


@contextmanager
def interpreted() -> Generator[None]:
    """Kernels that are traced within are interpreted. Skips where this JAX cannot do it."""
    plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    if not hasattr(plgpu, "force_gpu_interpret_mode"):
        pytest.skip(f"JAX {jax.__version__} has no interpreter of such kernels")
    callbacks: Any = importlib.import_module(_CALLBACKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "wgmma", _wgmma(callbacks, callbacks.wgmma))
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
            yield


def _wgmma(callbacks: Any, own: Any) -> Any:
    def wgmma(*, a_allocation_key_as_array: Any, **options: Any) -> Any:
        if np.ndim(a_allocation_key_as_array) != 2:
            return own(a_allocation_key_as_array=a_allocation_key_as_array, **options)
        memory, thread = callbacks._get_shared_memory(), options["thread"]
        info = callbacks.memory.GPULoggingInfo(options["mesh_location"], thread, options["source_info"])

        def content(name: str) -> tuple[Any, Any, Any]:
            key = callbacks.HostAllocationKey.from_array(options[f"{name}_allocation_key_as_array"])
            transforms = jax.tree.map(int, callbacks._remove_noop_transforms(options[f"{name}_transforms"]))
            place = memory.access(key, transforms)
            return key, place, memory.get_buffer_content(key, place, thread, logging_info=info)[0]

        (key, place, total), right = content("acc"), content("b")[2]
        product = np.matmul(np.asarray(a_allocation_key_as_array, np.float32), np.asarray(right, np.float32))
        memory.store_buffer_content(key, place, total + product, thread, logging_info=info)
        return options["token"]

    return wgmma
