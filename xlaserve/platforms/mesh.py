"""One mesh axis over the devices of an engine: how arrays are split along it, and where each of their parts is.

Graphs are traced over a mesh without devices, so that one export fits any devices of that number; with a single device there is no mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from xlaserve.platforms.platform import Device

AXIS = "tp"
"""The axis over which heads, MLP width and vocabulary are split."""


def spread(array: jax.ShapeDtypeStruct, shards: int, spec: PartitionSpec | None = None) -> jax.ShapeDtypeStruct:
    """What all devices together hold.

    Args:
        array: what one of them holds.
        shards: how many they are; with one, the result is `array`.
        spec: names `AXIS` at the dimension of which each device has a part; None where each has the whole.
    """
    if shards == 1:
        return array
    spec = spec or PartitionSpec()
    names = (*spec, *(None,) * (len(array.shape) - len(spec)))
    shape = tuple(size * shards if name == AXIS else size for size, name in zip(array.shape, names, strict=True))
    mesh = AbstractMesh((shards,), (AXIS,), axis_types=(AxisType.Auto,))
    return jax.ShapeDtypeStruct(shape, array.dtype, sharding=NamedSharding(mesh, spec))


def part(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What one device holds of it: the opposite of `spread`."""
    return jax.ShapeDtypeStruct(part_shape(array), array.dtype)


def part_shape(array: Any) -> tuple[int, ...]:
    """Shape of what one device holds of an array, or of a description of one."""
    return array.shape if array.sharding is None else array.sharding.shard_shape(array.shape)


def held_bytes(array: jax.Array) -> int:
    """Bytes that an array takes on all its devices together."""
    return len(array.sharding.device_set) * prod(part_shape(array)) * array.dtype.itemsize


def sharding(array: jax.ShapeDtypeStruct, devices: Sequence[Device]) -> Sharding:
    """Where an array is.

    Args:
        array: from `spread` over as many shards as there are devices.
        devices: in the order of the shards.
    """
    if len(devices) == 1:
        return SingleDeviceSharding(devices[0])
    assert isinstance(array.sharding, NamedSharding)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, array.sharding.spec)


def join(parts: Sequence[jax.Array], array: jax.ShapeDtypeStruct, devices: Sequence[Device]) -> jax.Array:
    """One array of the parts that are on its devices already."""
    if len(devices) == 1:
        return parts[0]
    return jax.make_array_from_single_device_arrays(array.shape, sharding(array, devices), list(parts))


def on_each_device(function: Callable[..., Any], arguments: Any, results: Any) -> Callable[..., Any]:
    """The function of whole arrays that runs `function` on every device, with its parts of them.

    Nothing is split or gathered that the function does not split or gather itself; what it gives as a whole must be the same everywhere.

    Args:
        function: takes and gives parts.
        arguments, results: descriptions of the whole arrays, from `spread`.
    """
    leaves = jax.tree.leaves((arguments, results))
    if leaves[0].sharding is None:
        return function

    def specs(tree: Any) -> Any:
        return jax.tree.map(lambda array: array.sharding.spec, tree)

    mesh = leaves[0].sharding.mesh
    return jax.shard_map(function, mesh=mesh, in_specs=specs(arguments), out_specs=specs(results), check_vma=False)


def with_axis(function: Callable[..., Any], shards: int) -> Callable[..., Any]:
    """The function as one of several devices runs it, for asking what shapes it gives."""
    if shards == 1:
        return function
    return jax.vmap(function, in_axes=None, out_axes=None, axis_size=shards, axis_name=AXIS)


def total(x: jax.Array, shards: int) -> jax.Array:
    """The sum of what all devices have, on each of them."""
    return x if shards == 1 else jax.lax.psum(x, AXIS)


def largest(x: jax.Array, shards: int) -> jax.Array:
    """The largest of what all devices have, element by element, on each of them."""
    return x if shards == 1 else jax.lax.pmax(x, AXIS)


def concatenated(x: jax.Array, shards: int) -> jax.Array:
    """What all devices have, one after the other along the last dimension, on each of them."""
    return x if shards == 1 else jax.lax.all_gather(x, AXIS, axis=x.ndim - 1, tiled=True)
