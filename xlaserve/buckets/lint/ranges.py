"""Which integers a value can hold: intervals carried from arguments and constants through a module (Cousot & Cousot, 1977).

The host's contract gives the arguments' intervals. Intervals are kept per place of the last axis, so that the columns of a packed
argument, and the parts of an index, stay apart. What is not known is the whole range of the type.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlaserve.buckets.lint.module import Block, Module, Op, Tensor, Value, dtype_bits

_WIDEST = 1 << 20
"""Places of a last axis beyond which one interval stands for all."""


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Lowest and highest value, int64 of shape `[]`, or `[n]` for the n places of the last axis."""

    low: np.ndarray
    high: np.ndarray

    @property
    def flat(self) -> Range:
        """One interval for all places."""
        return Range(self.low.min(), self.high.max())

    def __or__(self, other: Range) -> Range:
        if self.low.ndim and other.low.ndim and self.low.shape != other.low.shape:
            return self.flat | other.flat
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


Contract = Mapping[str, Range]
"""Name of an argument of the module -> what the host puts there."""


def between(low: Any, high: Any) -> Range:
    """An interval, or one for each place of the last axis."""
    return Range(np.asarray(low, np.int64), np.asarray(high, np.int64))


def of_type(kind: Tensor) -> Range:
    """Everything that the type can hold."""
    if kind.dtype == "pred":
        return between(0, 1)
    bits = min(dtype_bits(kind.dtype), 63) if kind.is_integer else 63
    if kind.dtype[0] == "u":
        return between(0, (1 << bits) - 1)
    return between(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def index_ranges(module: Module, contract: Contract) -> dict[Op, Range]:
    """For each gather and scatter the interval of its indices, over all calls, per component of the index vector."""
    analysis = _Analysis(module)
    arguments = [contract.get(value.name) or of_type(value.type) for value in module.main.arguments]
    analysis.run(module.main, arguments, {})
    return analysis.indices


class _Analysis:
    def __init__(self, module: Module) -> None:
        self._module = module
        self.indices: dict[Op, Range] = {}

    def run(self, block: Block, arguments: list[Range], outer: dict[Value, Range]) -> list[Range]:
        known = {**outer, **dict(zip(block.arguments, arguments, strict=True))}
        for op in block.ops:
            if op.name in ("gather", "scatter"):
                self._note(op, known[op.operands[_index_operand(op)]])
            for value, found in zip(op.results, self._results(op, known), strict=True):
                known[value] = found
        return [known[value] for value in block.returns]

    def _note(self, op: Op, index: Range) -> None:
        index = index if _indexed_last(op) else index.flat
        before = self.indices.get(op)
        self.indices[op] = index if before is None else before | index

    def _results(self, op: Op, known: dict[Value, Range]) -> list[Range]:
        inputs = [known[value] for value in op.operands]
        if op.name == "call":
            return self.run(self._module.functions[op.attributes["callee"]], inputs, {})
        if op.name == "while":
            # Nothing is known of what a loop carries, but the loop's own indices are looked at with that.
            free = [of_type(value.type) for value in op.results]
            body = op.blocks[-1]
            kept = [a is b for a, b in zip(body.returns, body.arguments, strict=True)]
            carried = [before if same else after for before, after, same in zip(inputs, free, kept, strict=True)]
            for block in op.blocks:
                self.run(block, carried, known)
            return carried
        if op.name in ("case", "if"):
            rest = iter(inputs[1:])  # HLO gives each branch its own operands, StableHLO gives none any
            branches = [self.run(block, [next(rest) for _ in block.arguments], known) for block in op.blocks]
            return [_union(column) for column in zip(*branches, strict=True)]
        whole = [of_type(value.type) for value in op.results]
        if op.name == "custom_call" and op.attributes.get("call_target_name") == "AwsNeuronTopK" and len(whole) == 2:
            return [whole[0], between(0, (op.operands[0].type.shape[-1] or 1) - 1)]
        if len(whole) != 1 or not (op.results[0].type.is_integer or op.results[0].type.dtype == "pred"):
            return whole
        found = _TRANSFER[op.name](op, inputs) if op.name in _TRANSFER else whole[0]
        if found.low.size > _WIDEST:
            found = found.flat
        limit = whole[0]
        # What may wrap around can be anything.
        return [found if (found.low >= limit.low).all() and (found.high <= limit.high).all() else limit]


def _index_operand(op: Op) -> int:
    return 1 if op.name == "gather" else len(op.results)


def _indexed_last(op: Op) -> bool:
    shape = op.operands[_index_operand(op)].type.shape
    return op.attributes.get("index_vector_dim", len(shape)) == len(shape) - 1


def _union(ranges: Any) -> Range:
    found = None
    for one in ranges:
        found = one if found is None else found | one
    assert found is not None
    return found


def _corners(function: Callable[[Any, Any], Any]) -> Callable[[Op, list[Range]], Range]:
    """Of a function that is monotone in each argument: its extremes stand at the corners."""

    def apply(_op: Op, inputs: list[Range]) -> Range:
        a, b = _aligned(*inputs)
        corners = [function(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return Range(np.min(corners, axis=0), np.max(corners, axis=0))

    return apply


def _product(a: Any, b: Any) -> Any:
    """Exact where it matters; products that int64 cannot hold stay beyond every 32-bit type."""
    return np.clip(np.multiply(a, b, dtype=np.float64), -(2.0**62), 2.0**62).astype(np.int64)


def _aligned(a: Range, b: Range) -> tuple[Range, Range]:
    return (a.flat, b.flat) if a.low.ndim and b.low.ndim and a.low.shape != b.low.shape else (a, b)


def _divide(_op: Op, inputs: list[Range]) -> Range:
    a, b = _aligned(*inputs)
    if (b.low <= 0).any() or (a.low < 0).any():
        return Range(-np.maximum(abs(a.low), abs(a.high)), np.maximum(abs(a.low), abs(a.high)))
    return Range(a.low // b.high, a.high // b.low)


def _remainder(_op: Op, inputs: list[Range]) -> Range:
    a, b = _aligned(*inputs)
    most = np.maximum(abs(b.low), abs(b.high)) - 1
    most = np.maximum(most, 0)
    return Range(np.where(a.low >= 0, 0, -most), np.minimum(most, np.maximum(a.high, 0)))


def _shift_right(_op: Op, inputs: list[Range]) -> Range:
    a, b = _aligned(*inputs)
    if (b.low < 0).any() or (b.high > 62).any():
        return Range(np.minimum(a.low, 0), np.maximum(a.high, 0))
    corners = [x >> y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Range(np.min(corners, axis=0), np.max(corners, axis=0))


def _and(op: Op, inputs: list[Range]) -> Range:
    a, b = _aligned(*inputs)
    if op.results[0].type.dtype == "pred":
        return Range(np.minimum(a.low, b.low), np.minimum(a.high, b.high))
    if (a.low >= 0).all() or (b.low >= 0).all():
        return Range(np.zeros_like(a.low), np.where(a.low < 0, b.high, np.where(b.low < 0, a.high, np.minimum(a.high, b.high))))
    return of_type(op.results[0].type)


def _or(op: Op, inputs: list[Range]) -> Range:
    a, b = _aligned(*inputs)
    if op.results[0].type.dtype == "pred":
        return Range(np.maximum(a.low, b.low), np.maximum(a.high, b.high))
    return of_type(op.results[0].type)


def _not(op: Op, inputs: list[Range]) -> Range:
    return Range(1 - inputs[0].high, 1 - inputs[0].low) if op.results[0].type.dtype == "pred" else of_type(op.results[0].type)


def _compare(op: Op, inputs: list[Range]) -> Range:
    if not op.operands[0].type.is_integer:
        return between(0, 1)
    a, b = _aligned(*inputs)
    certain, impossible = {
        "LT": (a.high < b.low, a.low >= b.high),
        "LE": (a.high <= b.low, a.low > b.high),
        "GT": (a.low > b.high, a.high <= b.low),
        "GE": (a.low >= b.high, a.high < b.low),
        "EQ": ((a.low == a.high) & (b.low == b.high) & (a.low == b.low), (a.high < b.low) | (a.low > b.high)),
        "NE": ((a.high < b.low) | (a.low > b.high), (a.low == a.high) & (b.low == b.high) & (a.low == b.low)),
    }[op.attributes["comparison_direction"]]
    return Range(certain.astype(np.int64), 1 - impossible.astype(np.int64))


def _select(_op: Op, inputs: list[Range]) -> Range:
    chosen, on_true, on_false = inputs
    chosen = chosen.flat
    if chosen.low == 1:
        return on_true
    return on_false if chosen.high == 0 else on_true | on_false


def _clamp(_op: Op, inputs: list[Range]) -> Range:
    low, x, high = (r.flat if len({i.low.shape for i in inputs if i.low.ndim}) > 1 else r for r in inputs)
    return Range(np.minimum(np.maximum(x.low, low.low), high.high), np.minimum(np.maximum(x.high, low.low), high.high))


def _constant(op: Op, _inputs: list[Range]) -> Range:
    content, kind = op.attributes["value"], op.results[0].type
    if content is None or not len(content):
        return of_type(kind)
    content = content.astype(np.int64)
    if len(content) == kind.size and kind.shape and kind.size <= _WIDEST:
        rows = content.reshape(-1, kind.shape[-1])
        return Range(rows.min(axis=0), rows.max(axis=0))
    return Range(content.min(), content.max())


def _iota(op: Op, _inputs: list[Range]) -> Range:
    shape, axis = op.results[0].type.shape, op.attributes["iota_dimension"]
    count = shape[axis] or 1
    if axis == len(shape) - 1 and count <= _WIDEST:
        numbers = np.arange(count)
        return Range(numbers, numbers)
    return between(0, count - 1)


def _broadcast(op: Op, inputs: list[Range]) -> Range:
    source, target, places = op.operands[0].type.shape, op.results[0].type.shape, op.attributes.get("broadcast_dimensions", ())
    keeps = bool(source) and places[-1] == len(target) - 1 and source[-1] == target[-1]
    return inputs[0] if keeps else inputs[0].flat


def _reshape(op: Op, inputs: list[Range]) -> Range:
    source, target = op.operands[0].type.shape, op.results[0].type.shape
    return inputs[0] if source and target and source[-1] == target[-1] else inputs[0].flat


def _transpose(op: Op, inputs: list[Range]) -> Range:
    order = op.attributes.get("permutation", ())
    return inputs[0] if order and order[-1] == len(order) - 1 else inputs[0].flat


def _slice(op: Op, inputs: list[Range]) -> Range:
    if not inputs[0].low.ndim:
        return inputs[0]
    part = slice(op.attributes["start_indices"][-1], op.attributes["limit_indices"][-1], op.attributes["strides"][-1])
    return Range(inputs[0].low[part], inputs[0].high[part])


def _concatenate(op: Op, inputs: list[Range]) -> Range:
    if op.attributes["dimension"] != len(op.results[0].type.shape) - 1:
        return _union(inputs)
    sizes = [value.type.shape[-1] or 1 for value in op.operands]
    lows, highs = zip(*((np.broadcast_to(r.low, n), np.broadcast_to(r.high, n)) for r, n in zip(inputs, sizes, strict=True)), strict=True)
    return Range(np.concatenate(lows), np.concatenate(highs))


def _pad(_op: Op, inputs: list[Range]) -> Range:
    return inputs[0].flat | inputs[1].flat


def _reduce(op: Op, inputs: list[Range]) -> Range:
    inner = op.blocks[0].ops
    name = inner[0].name if len(inner) == 1 else ""
    x, start = inputs[0].flat, inputs[1].flat
    if name == "minimum":
        return Range(np.minimum(x.low, start.low), np.minimum(x.high, start.high))
    if name == "maximum":
        return Range(np.maximum(x.low, start.low), np.maximum(x.high, start.high))
    if name in ("and", "or") and op.results[0].type.dtype == "pred":
        return between(0, 1)
    if name == "add":
        count = op.operands[0].type.size // max(op.results[0].type.size, 1)
        return Range(np.minimum(x.low * count, 0) + start.low, np.maximum(x.high * count, 0) + start.high)
    return of_type(op.results[0].type)


def _convert(op: Op, inputs: list[Range]) -> Range:
    kind = op.operands[0].type
    return inputs[0] if kind.is_integer or kind.dtype == "pred" else of_type(op.results[0].type)


def _first(_op: Op, inputs: list[Range]) -> Range:
    return inputs[0]


def _first_anywhere(_op: Op, inputs: list[Range]) -> Range:
    return inputs[0].flat


_TRANSFER: dict[str, Callable[[Op, list[Range]], Range]] = {
    "add": _corners(operator.add),
    "subtract": _corners(operator.sub),
    "multiply": _corners(_product),
    "minimum": _corners(np.minimum),
    "maximum": _corners(np.maximum),
    "divide": _divide,
    "remainder": _remainder,
    "shift_right_logical": lambda op, inputs: _shift_right(op, inputs) if (inputs[0].low >= 0).all() else of_type(op.results[0].type),
    "shift_right_arithmetic": _shift_right,
    "sign": lambda _op, inputs: Range(np.sign(inputs[0].low), np.sign(inputs[0].high)),
    "negate": lambda _op, inputs: Range(-inputs[0].high, -inputs[0].low),
    "and": _and,
    "or": _or,
    "not": _not,
    "compare": _compare,
    "select": _select,
    "clamp": _clamp,
    "constant": _constant,
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "reduce": _reduce,
    "convert": _convert,
    "copy": _first,
    "optimization_barrier": _first,
    "reverse": _first_anywhere,
    "gather": _first_anywhere,
    "dynamic_slice": _first_anywhere,
    "dynamic_update_slice": lambda _op, inputs: inputs[0].flat | inputs[1].flat,
    "scatter": lambda op, inputs: of_type(op.results[0].type) if op.blocks[0].ops else inputs[0].flat | inputs[-1].flat,
}
