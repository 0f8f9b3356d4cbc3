"""Linear layers and attention that follow each other, as one call of the CPU kernels.

Between two calls of their own, XLA takes some microseconds in which no core reads weights, and a step has five calls for each layer. So
they are written down while the model is traced, and made one call in the end; what they compute is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from xlaserve.kernels.linear import ACTIVATIONS
from xlaserve.kernels.packs import Packed, where
from xlaserve.kernels.panels import matrix_shape

CHAIN = "xlaserve_chain"
"""Name of the custom call."""

_LINEAR, _ATTENTION = 0, 1
_OPERAND, _RESULT, _SCRATCH = 0, 1, 2
_ABSENT = -1
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """What a step of a chain will have computed, or what a chain begins with.

    Args:
        number: of the value in its chain.
        shape, dtype: of the array that it stands for.
    """

    number: int
    shape: tuple[int, ...]
    dtype: Any


class Chain:
    """Steps that are one call, and values between them, whose dimensions but for the last are all the same.

    Args:
        lengths: int32 `[S]`, how many places of each row are real, as `xlaserve.kernels.linear` takes it; None for all.
    """

    def __init__(self, lengths: Array | None) -> None:
        self._lengths = lengths
        self._operands: list[Array] = []
        self._numbers: dict[int, int] = {}  # of operands, by identity
        self._values: list[Value] = []
        self._begins: dict[int, int] = {}  # operand of each value that the chain begins with
        self._steps: list[list[int]] = []
        self._used: list[tuple[int, ...]] = []  # values of each step, what it computes last
        self._cached: tuple[Array, ...] | None = None

    def begin(self, array: Array) -> Value:
        """An array that steps may read, as a value; the first must be of the dtype of all that is computed."""
        value = self._value(array.shape, array.dtype)
        self._begins[value.number] = self._operand(array)
        return value

    def linear(
        self,
        x: Value,
        weight: Array | Packed,
        scale: Array | Packed | None = None,
        *,
        norm: Array | Packed | None = None,
        eps: float = 0.0,
        unit_offset: bool = False,
        bias: Array | Packed | None = None,
        activation: str | None = None,
        residual: Value | None = None,
    ) -> Value:
        """As `xlaserve.kernels.linear.linear`."""
        y = self._value((*x.shape[:-1], matrix_shape(weight.shape)[0] // (1 if activation is None else 2)), x.dtype)
        parameters = [(_ABSENT, 0) if p is None else self._parameter(p) for p in (weight, scale, norm, bias)]
        values = (x.number, _ABSENT if residual is None else residual.number, y.number)
        numbers = [*values, _bits(eps), int(unit_offset), ACTIVATIONS.index(activation)]
        self._steps.append(
            [_LINEAR, *numbers, *(n for n, _ in parameters), *(at for _, at in parameters), len(weight.shape), *weight.shape]
        )
        self._used.append(tuple(number for number in values if number >= 0))
        return y

    def attention(
        self,
        qkv: Value,
        cos: Array,
        sin: Array,
        cached: tuple[Array, Array, Array, Array, Array],
        *,
        layer: int,
        q_norm: Array | Packed | None,
        k_norm: Array | Packed | None,
        heads: int,
        scale: float,
        window: int | None,
        softcap: float | None,
        eps: float,
        unit_offset: bool,
    ) -> Value:
        """As `xlaserve.kernels.attention.paged_attention`; what it leaves in the cache, `run` gives.

        Args:
            cached: keys, values, block tables, positions and lengths, the same for all steps.
        """
        self._cached = cached
        out = self._value((*qkv.shape[:-1], heads * cached[1].shape[-1]), qkv.dtype)
        norms = [(_ABSENT, 0) if p is None else self._parameter(p) for p in (q_norm, k_norm)]
        numbers = [qkv.number, out.number, self._operand(cos), self._operand(sin), *(n for n, _ in norms), *(at for _, at in norms)]
        numbers += [layer, heads, _bits(scale), window or 0, _bits(softcap or 0.0), _bits(eps), int(unit_offset)]
        self._steps.append([_ATTENTION, *numbers])
        self._used.append((qkv.number, out.number))
        return out

    def run(self, wanted: Sequence[Value]) -> tuple[tuple[Array, ...], tuple[Array, Array] | None]:
        """Make it a call.

        Args:
            wanted: values to have as arrays; others are gone with it.

        Returns:
            Their arrays; and keys and values of the cache, where a step has read it. Donated, they are updated in place.
        """
        places, scratch = self._places([value.number for value in wanted])
        empty, nothing = jnp.zeros((0,), jnp.int32), jnp.zeros((0,), jnp.float32)
        keys, values, tables, positions, sequences = self._cached or (nothing, nothing, empty, empty, empty)
        fixed = (empty if self._lengths is None else self._lengths, sequences, positions, tables, keys, values)
        made = [value for value in wanted if value.number not in self._begins]
        results = (
            jax.ShapeDtypeStruct(keys.shape, keys.dtype),
            jax.ShapeDtypeStruct(values.shape, values.dtype),
            jax.ShapeDtypeStruct((scratch,), jnp.uint8),
            *(jax.ShapeDtypeStruct(value.shape, value.dtype) for value in made),
        )
        call = jax.ffi.ffi_call(CHAIN, results, input_output_aliases={4: 0, 5: 1} if self._cached else None)
        steps = [number for step in self._steps for number in step]
        keys, values, _, *found = call(*fixed, *self._operands, values=np.array(places, np.int64), steps=np.array(steps, np.int64))
        arrays = {value.number: array for value, array in zip(made, found, strict=True)}
        arrays |= {number: self._operands[operand] for number, operand in self._begins.items()}
        return tuple(arrays[value.number] for value in wanted), (keys, values) if self._cached else None

    def _value(self, shape: tuple[int, ...], dtype: Any) -> Value:
        self._values.append(Value(len(self._values), tuple(shape), dtype))
        return self._values[-1]

    def _operand(self, array: Array) -> int:
        if id(array) not in self._numbers:
            self._numbers[id(array)] = len(self._operands)
            self._operands.append(array)
        return self._numbers[id(array)]

    def _parameter(self, parameter: Array | Packed) -> tuple[int, int]:
        array, at = where(parameter)
        return self._operand(array), at

    def _places(self, wanted: Sequence[int]) -> tuple[list[int], int]:
        """Where each value lies, three numbers each: operand, result or scratch; which of them, or from which byte on; its width. And
        bytes of scratch: values lie where others lay that no later step reads.
        """
        last = {number: step for step, used in enumerate(self._used) for number in used}
        made = [number for number in wanted if number not in self._begins]
        alive: list[tuple[int, int, int]] = []  # begin, end, value
        found: dict[int, tuple[int, int]] = {number: (_OPERAND, operand) for number, operand in self._begins.items()}
        found |= {number: (_RESULT, at) for at, number in enumerate(made)}
        most = 0
        for step, (*_, number) in enumerate(self._used):
            alive = [(begin, end, held) for begin, end, held in alive if last[held] >= step]
            if number not in found:
                value = self._values[number]
                size = -(-prod(value.shape) * np.dtype(value.dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
                at = 0
                for begin, end, _ in sorted(alive):
                    if at + size <= begin:
                        break
                    at = end
                alive.append((at, at + size, number))
                found[number] = _SCRATCH, at
                most = max(most, at + size)
        return [n for value in self._values for n in (*found[value.number], value.shape[-1])], most


def _bits(number: float) -> int:
    """A float32 as the integer of its bits."""
    return int(np.float32(number).view(np.int32))
