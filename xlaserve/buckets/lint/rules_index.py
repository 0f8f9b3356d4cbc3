"""Rules on gather and scatter: N15 to N17. On Neuron an index out of range is a run-time error, whatever JAX's mode says."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from xlaserve.buckets.lint.finding import Hit, NotChecked
from xlaserve.buckets.lint.module import Op, Value, constant_of
from xlaserve.buckets.lint.ranges import of_type
from xlaserve.buckets.lint.rule import Subject, rule
from xlaserve.platforms.neuron_targets import Target

_LIMIT = "What the host puts into index arguments is taken from the layout of batches; for files, where that is unknown, it stays open."
_LOWEST_INT = -(2**31)


@rule(
    "N15",
    "A gather takes whole rows by int32 indices that are provably in range; no fill mode.",
    severity="error, warning",
    source="archived neuron-cc operator list (Gather); JAX NeuronX known issues; aws-neuron-sdk#1335",
    limit=_LIMIT,
)
def row_gathers(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    filled = {gather for op in subject.named("select") if (gather := _filled_gather(op)) is not None}
    for op in subject.named("gather"):
        indexed = set(op.attributes.get("start_index_map", ()))
        whole = set(op.attributes.get("collapsed_slice_dims", ())) | set(op.attributes.get("operand_batching_dims", ()))
        if indexed - whole:
            yield Hit(f"gather indexes dimension {min(indexed - whole)}, which stays in its result; collapse indexed dimensions", op)
        elif len(indexed) > 1:
            yield Hit(f"gather by {len(indexed)} indices at once; rows by one index are what hardware does best", op, "warning")
        if op.operands[1].type.dtype != "s32":
            yield Hit(f"gather by {op.operands[1].type.dtype} indices; use int32", op)
        if op in filled:
            yield Hit("gather with fill mode: indices out of range are an error here; clamp them, and use promise_in_bounds", op)
        else:
            yield from _range_hits(op, subject)


@rule(
    "N16",
    "A scatter overwrites, by indices that are provably in range: padding goes to a real place, never to -1 with mode=drop.",
    severity="error",
    source="aws-neuron-sdk#1335; JAX NeuronX known issues (gather, scatter)",
    limit=_LIMIT,
)
def overwriting_scatters(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("scatter"):
        body = op.blocks[0]
        if body.ops or body.returns != body.arguments[len(op.results) :]:
            yield Hit(f"scatter that computes ({', '.join(inner.name for inner in body.ops) or 'keeps'}); gather, compute, overwrite", op)
        if op.operands[len(op.results)].type.dtype != "s32":
            yield Hit(f"scatter by {op.operands[len(op.results)].type.dtype} indices; use int32", op)
        yield from _range_hits(op, subject)


@rule(
    "N17",
    "An iota that feeds a gather or scatter is no longer than what it indexes.",
    severity="error",
    source="EVRF031, EVRF056",
)
def short_iotas(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("gather", "scatter"):
        dims, shape = _indexed(op), op.operands[0].type.shape
        index = op.operands[1 if op.name == "gather" else len(op.results)]
        parts = [index]
        if index.producer is not None and index.producer.name == "concatenate" and len(index.producer.operands) == len(dims):
            parts = list(index.producer.operands)
        for dim, part in zip(dims, parts, strict=False):
            iota = producer_of(part, "iota")
            length = 0 if iota is None else iota.results[0].type.shape[iota.attributes["iota_dimension"]] or 0
            if length > (shape[dim] or 0):
                yield Hit(f"iota of {length} indexes a dimension of {shape[dim]}", op)


def _indexed(op: Op) -> tuple[int, ...]:
    return op.attributes.get("start_index_map" if op.name == "gather" else "scatter_dims_to_operand_dims", ())


def _windows(op: Op) -> list[int]:
    """Elements that one index reaches in each dimension of the operand."""
    if op.name == "gather":
        return list(op.attributes["slice_sizes"])
    rank = len(op.operands[0].type.shape)
    single = set(op.attributes.get("inserted_window_dims", ())) | set(op.attributes.get("input_batching_dims", ()))
    updates = op.operands[-1].type.shape
    sizes = iter([updates[dim] or 1 for dim in op.attributes.get("update_window_dims", ())])
    return [1 if dim in single else next(sizes) for dim in range(rank)]


def _range_hits(op: Op, subject: Subject) -> Iterator[Hit | NotChecked]:
    index = subject.indices.get(op)
    if index is None:
        return  # in a function that nothing calls
    dims, windows, shape = _indexed(op), _windows(op), op.operands[0].type.shape
    lows, highs = np.broadcast_to(index.low, len(dims)), np.broadcast_to(index.high, len(dims))
    kind = of_type(op.operands[1 if op.name == "gather" else len(op.results)].type)
    for dim, low, high in zip(dims, lows.tolist(), highs.tolist(), strict=True):
        last = (shape[dim] or 1) - windows[dim]
        if low >= 0 and high <= last:
            continue
        if subject.facts is not None:
            known = "anything" if (low, high) == (int(kind.low), int(kind.high)) else f"from {low} to {high}"
            yield Hit(f"{op.name}: the index of dimension {dim} is {known}; it must be from 0 to {last}", op)
        elif high < 0 or low > last:
            yield Hit(f"{op.name}: the index of dimension {dim} is from {low} to {high}; it must be from 0 to {last}", op)
        else:
            yield NotChecked("indices come from arguments whose values are not known")


def _filled_gather(select: Op) -> Op | None:
    """The gather whose result a select replaces by NaN or the lowest integer where the index is out of range: JAX's fill mode."""
    _, on_true, on_false = select.operands
    fill = constant_of(on_false)
    if fill is None or not (math.isnan(fill) or fill == _LOWEST_INT):
        return None
    return producer_of(on_true, "gather")


def producer_of(value: Value, name: str) -> Op | None:
    """The operation of that name that a value comes from, seen through changes of shape and type."""
    op = value.producer
    while op is not None and op.name in ("reshape", "broadcast_in_dim", "convert", "transpose"):
        op = op.operands[0].producer
    return op if op is not None and op.name == name else None
