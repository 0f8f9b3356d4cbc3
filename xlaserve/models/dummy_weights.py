"""Random weights for `--load-format dummy`, made where they are used: nothing is copied from the host, and each device makes its part.

Every number is a hash of its tensor's name and its place in the checkpoint's tensor. So a model has the same weights on every platform, in
every process, and however many devices it is split over. They are scaled so that activations and logits stay finite and vary: a product
keeps the variance of what goes into it (LeCun et al., 1998), norms are near the identity. Weights of 8 bits are random
steps, with the scale that does the same.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from xlaserve.kernels.packs import Packing
from xlaserve.kernels.panels import matrix_shape
from xlaserve.models.config import ModelConfig
from xlaserve.models.layers import FIRST_ROW, SCALE, Rows, checkpoint_rows, rows_key
from xlaserve.models.quantization import WEIGHT_STEPS
from xlaserve.models.weights import PackedArrays, sources, whole_rows
from xlaserve.platforms.mesh import AXIS, on_each_device, part_shape, sharding, spread
from xlaserve.platforms.platform import Device
from xlaserve.platforms.random_bits import mix

_NEAR = 0.1
"""Standard deviation of norms about the identity, and of biases about 0."""


class _Recipe(NamedTuple):
    """What one graph makes; parameters of the same recipe differ in names and places, which are arguments.

    Args:
        shape: of a device's part.
        dtype: its dtype.
        rows: the checkpoint's tensors that the rows consist of.
        columns: of the whole tensors.
        center: mean of the numbers.
        deviation: their standard deviation.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    rows: tuple[Rows, ...]
    columns: int
    center: float
    deviation: float


class DummyWeights:
    """Makes the weights of one model, again and again the same; compiles only for the first time.

    Args:
        model: the whole model.
        parameters: name, shape and dtype of every parameter, and how it is split, in the order wanted back.
        devices: where to make them, in the order of the parts.
        packing: of the parameters, where some are to lie in packs.
    """

    def __init__(
        self,
        model: ModelConfig,
        parameters: Mapping[str, jax.ShapeDtypeStruct],
        devices: Sequence[Device],
        packing: Packing | None = None,
    ) -> None:
        self._parameters = parameters
        self._packing = packing or Packing(parameters, packs=False)
        self._devices = devices
        self._identity = 0.0 if model.unit_offset_norm else 1.0
        self._rows = checkpoint_rows(model, len(devices))
        self._graphs: dict[_Recipe, Callable[[Array], Array]] = {}

    def make(self) -> tuple[Array, ...]:
        """Every parameter, or the arrays of the packing."""
        arrays = PackedArrays(self._packing, self._devices)
        for name, parameter in self._parameters.items():
            arrays.take(name, self._parameter(name, parameter))
        return jax.block_until_ready(arrays.finish())

    def _parameter(self, name: str, array: jax.ShapeDtypeStruct) -> Array:
        shards = range(len(self._devices))
        if name.endswith(f".{FIRST_ROW}"):
            first = np.array(shards, np.int32) * self._rows["embed_tokens"].held
            return jax.device_put(first, sharding(array, self._devices))
        tensors = sources(name.removesuffix(SCALE) + "weight" if name.endswith(SCALE) else name)
        whole = whole_rows(array, len(self._devices))
        rows = tuple(self._rows.get(rows_key(tensor), whole) for tensor in tensors)
        shape = part_shape(array)
        columns = 1 if len(shape) == 1 else matrix_shape(array.shape)[-1]
        center, deviation = self._spread(name, array.dtype, columns)
        recipe = _Recipe(shape, np.dtype(array.dtype), rows, columns, center, deviation)
        # For each device: the first column, then the first row and the seed of each tensor.
        width = 0 if matrix_shape(shape)[-1] == columns else shape[-1]
        table = [
            [shard * width, *(n for r, t in zip(rows, tensors, strict=True) for n in (r.of(shard).start, _seed(t)))] for shard in shards
        ]
        places = np.array(table, np.uint32).reshape(-1)
        described = spread(jax.ShapeDtypeStruct((len(table[0]),), jnp.uint32), len(shards), PartitionSpec(AXIS))
        if recipe not in self._graphs:
            function = on_each_device(partial(_numbers, recipe), (described,), array)
            self._graphs[recipe] = jax.jit(function, out_shardings=sharding(array, self._devices))
        return self._graphs[recipe](jax.device_put(places, sharding(described, self._devices)))

    def _spread(self, name: str, dtype: np.dtype[np.generic], columns: int) -> tuple[float, float]:
        """Mean and standard deviation of a parameter."""
        *_, module, leaf = name.split(".")
        if leaf == SCALE:
            return math.sqrt(3 / matrix_shape(self._parameters[name.removesuffix("_scale")].shape)[-1]) / WEIGHT_STEPS, 0.0
        if dtype == np.int8:
            return 0.0, WEIGHT_STEPS / math.sqrt(3)
        if leaf == "bias":
            return 0.0, _NEAR
        if module.endswith("norm"):
            return self._identity, _NEAR
        return 0.0, 1 / math.sqrt(columns)


def _numbers(recipe: _Recipe, places: Array) -> Array:
    """A device's part of a parameter; rows beyond the end of a tensor are 0."""
    dimensions = len(recipe.shape)
    counted = partial(jax.lax.broadcasted_iota, jnp.uint32, recipe.shape)
    place, column = counted(max(0, dimensions - 2)), counted(dimensions - 1)
    if dimensions == 4:
        _, _, outputs, together = recipe.shape
        place, column = counted(0) * jnp.uint32(outputs) + place, counted(1) * jnp.uint32(together) + column
    row, seed, beyond = place, jnp.uint32(0), jnp.bool_(False)
    begin = 0
    for index, tensor in enumerate(recipe.rows):
        here = place >= begin
        own = place - jnp.uint32(begin) + places[2 * index + 1]
        if dimensions == 3:
            own += counted(0) * jnp.uint32(tensor.total)
        row, seed = jnp.where(here, own, row), jnp.where(here, places[2 * index + 2], seed)
        beyond = jnp.where(here, own >= tensor.total, beyond) if dimensions != 3 else beyond
        begin += tensor.held
    column = column + places[0] if dimensions > 1 else jnp.uint32(0)
    bits = mix(mix(row * jnp.uint32(recipe.columns) + column + mix(seed)) + seed)
    # Evenly spread between -1 and 1, where the standard deviation is the root of 1/3.
    even = (bits >> 8).astype(jnp.float32) * jnp.float32(2**-23) - 1.0
    numbers = recipe.center + math.sqrt(3) * recipe.deviation * even
    if recipe.dtype == np.int8:
        numbers = jnp.round(numbers)
    return jnp.where(beyond, 0.0, numbers).astype(recipe.dtype)


def _seed(tensor: str) -> int:
    return zlib.crc32(tensor.encode())
