"""Parameters side by side in one long array for each type, a pack, as the CPU kernels read them.

Starting a graph costs time for each of its arguments, and meanwhile a core that could compute does not. A decoder has
hundreds of parameters; in packs they are a few arguments, and a kernel is told where in its operand a parameter begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jax import Array

_ALIGNMENT = 64
"""Bytes that every parameter begins at a multiple of."""

_PRODUCTS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_NORMS = ("input_layernorm", "pre_feedforward_layernorm", "q_norm", "k_norm")
"""What kernels apply in every layer."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A parameter in a pack.

    Args:
        pack: `[numbers]`.
        at: where in it the parameter begins.
        shape: of the parameter.
    """

    pack: Array
    at: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.pack.dtype

    @property
    def ndim(self) -> int:
        """Dimensions of the parameter."""
        return len(self.shape)


def where(parameter: Array | Packed) -> tuple[Array, int]:
    """The array that a parameter lies in, and where in that it begins."""
    return (parameter.pack, parameter.at) if isinstance(parameter, Packed) else (parameter, 0)


def unpacked(parameter: Array | Packed) -> Array:
    """A parameter as an array of its own."""
    if not isinstance(parameter, Packed):
        return parameter
    flat = jax.lax.slice(parameter.pack, (parameter.at,), (parameter.at + prod(parameter.shape),))
    return flat.reshape(parameter.shape)


class Packing:
    """What of a model's parameters lies where.

    Args:
        parameters: name, shape and dtype of every parameter.
        packs: whether there are packs: of what kernels read in layers. Else each parameter is by itself.
    """

    def __init__(self, parameters: Mapping[str, jax.ShapeDtypeStruct], *, packs: bool) -> None:
        self.parameters = parameters
        self._places: dict[str, tuple[str, int]] = {}
        ends: dict[str, int] = {}
        for name, parameter in parameters.items():
            if packs and _in_pack(name, parameters):
                dtype = np.dtype(parameter.dtype)
                pack, step = f"pack.{dtype.name}", _ALIGNMENT // dtype.itemsize
                at = ends.get(pack, 0)
                self._places[name] = pack, at
                ends[pack] = -(-(at + prod(parameter.shape)) // step) * step
        alone = {name: parameter for name, parameter in parameters.items() if name not in self._places}
        kinds = {pack: parameters[name].dtype for name, (pack, _) in self._places.items()}
        packed = {pack: jax.ShapeDtypeStruct((end,), kinds[pack]) for pack, end in ends.items()}
        self.arrays: Mapping[str, jax.ShapeDtypeStruct] = MappingProxyType({**alone, **packed})
        """What there is: parameters by themselves, then packs, under their names."""

    def array_of(self, name: str) -> str:
        """The name of the array that a parameter lies in: its own, or a pack's."""
        return self._places[name][0] if name in self._places else name

    def part(self, array: np.ndarray, name: str) -> np.ndarray:
        """A parameter as part of the array that it lies in; what is written to it is written there."""
        if name not in self._places:
            return array
        shape, at = self.parameters[name].shape, self._places[name][1]
        return array[at : at + prod(shape)].reshape(shape)

    def split(self, arrays: Sequence[Array]) -> tuple[Array | Packed, ...]:
        """Every parameter, in the order of `parameters`.

        Args:
            arrays: in the order of `arrays`.
        """
        found = dict(zip(self.arrays, arrays, strict=True))

        def one(name: str) -> Array | Packed:
            if name not in self._places:
                return found[name]
            pack, at = self._places[name]
            return Packed(found[pack], at, self.parameters[name].shape)

        return tuple(map(one, self.parameters))


def _in_pack(name: str, parameters: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Whether kernels alone read a parameter. Of what XLA reads, it might widen the whole pack."""
    *path, module, _ = name.split(".")
    if "layers" not in path:
        return False
    if module == "post_attention_layernorm":  # before the MLP, unless that has experts, or a norm of its own before it
        layer = ".".join(path)
        return f"{layer}.mlp.down_proj.weight" in parameters and f"{layer}.pre_feedforward_layernorm.weight" not in parameters
    return module in _NORMS or (module in _PRODUCTS and len(parameters[name].shape) != 3)
