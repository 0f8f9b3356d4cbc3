"""A native operation of an accelerator's compiler inside a graph: a custom call there, plain JAX wherever else the graph is lowered.

The choice is made when a graph is lowered, by the platform that it is lowered for, so one traced graph serves the device, the lint and
tests on the CPU; no conditional is left in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

Reference = Callable[..., tuple[Array, ...]]
"""Computes with JAX what the native operation computes; it gives the shapes and dtypes of the results too."""

_STATUS_RETURNING = 2  # the version of XLA's custom call interface that neuronx-cc asks for

_native = Primitive("native_call")
_native.multiple_results = True


def native_call(*operands: Array, platform: str, target: str, config: str, reference: Reference) -> tuple[Array, ...]:
    """Call a native operation.

    Args:
        operands: its operands.
        platform: JAX's name of the platform that has it.
        target: the custom call's target, such as "AwsNeuronTopK".
        config: its backend_config.
        reference: what to compute instead on any other platform; a graph is traced again for every new function object.
    """
    return tuple(_native.bind(*operands, platform=platform, target=target, config=config, reference=reference))


def _abstract(*operands: Any, reference: Reference, **_options: str) -> list[Any]:
    shapes = jax.eval_shape(reference, *(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands))
    return [ShapedArray(shape.shape, shape.dtype) for shape in shapes]


def _lower(context: Any, *operands: Any, platform: str, target: str, config: str, reference: Reference) -> Any:
    if tuple(context.module_context.platforms) != (platform,):
        return mlir.lower_fun(reference, multiple_results=True)(context, *operands)
    results = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in context.avals_out]
    call = jax.ffi.ffi_call(target, results, custom_call_api_version=_STATUS_RETURNING, legacy_backend_config=config)
    return mlir.lower_fun(call, multiple_results=True)(context, *operands)


_native.def_abstract_eval(_abstract)
mlir.register_lowering(_native, _lower)
