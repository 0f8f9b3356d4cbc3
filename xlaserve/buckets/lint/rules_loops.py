"""Rules on reductions and loops: N04 to N07, and how often a loop runs."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from xlaserve.buckets.lint.finding import Hit, NotChecked
from xlaserve.buckets.lint.module import Block, Op, Value, constant_of
from xlaserve.buckets.lint.rule import Subject, rule
from xlaserve.platforms.neuron_targets import Target

_COMBINERS = ("add", "multiply", "minimum", "maximum", "and", "or")
_LONG_WINDOW = 1024


@rule(
    "N04",
    "A reduction has one operand: argmax is a maximum and then a minimum over ids.",
    severity="error",
    source="JAX NeuronX known issues (variadic reductions)",
)
def plain_reductions(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("reduce"):
        if len(op.results) > 1:
            yield Hit(f"reduce of {len(op.results)} operands at once, as jnp.argmax makes it", op)


@rule(
    "N05",
    "A reduction's body is one add, multiply, minimum, maximum, and, or; it starts with a constant.",
    severity="error",
    source="archived neuron-cc operator list (Reduce)",
)
def simple_reductions(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("reduce"):
        if len(op.results) > 1:
            continue
        body = op.blocks[0]
        if len(body.ops) != 1 or body.ops[0].name not in _COMBINERS or set(body.ops[0].operands) != set(body.arguments):
            yield Hit(f"reduce with a body of {', '.join(inner.name for inner in body.ops) or 'nothing'}", op)
        elif constant_of(op.operands[1]) is None:
            yield Hit("reduce starts with a value that is no constant", op)


@rule(
    "N06",
    "reduce_window has one operand and no dilation; long ones (cumsum) are slow.",
    severity="error, warning",
    source="EVRF017, EVRF018, EVRF019; NxD Inference's own cumsum",
)
def plain_windows(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("reduce_window"):
        if len(op.results) > 1:
            yield Hit(f"reduce_window of {len(op.results)} operands at once", op)
        elif any(n != 1 for key in ("base_dilations", "window_dilations") for n in op.attributes.get(key, ())):
            yield Hit("reduce_window with dilation", op)
        elif prod(op.attributes["window_dimensions"]) > _LONG_WINDOW:
            yield Hit("long reduce_window, as jnp.cumsum makes it; multiply by a triangular matrix instead", op, "warning")


@rule(
    "N07",
    "A loop's trip count is a constant: its counter starts at a constant, steps by one, and is compared with one.",
    severity="error",
    source="JAX NeuronX known issues (while_loop)",
)
def static_loops(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("while"):
        if trip_count(op) is None:
            yield Hit("while whose trip count is known only at run time", op)


def trip_count(loop: Op) -> int | None:
    """How often a `while` runs; None where that is not a constant."""
    condition, body = loop.blocks
    test = condition.returns[0].producer if condition.returns else None
    if test is None or test.name != "compare":
        return None
    counter, bound = test.operands
    if counter not in condition.arguments:
        return None
    place = counter.index
    start, last = constant_of(loop.operands[place]), _settled(bound, condition, loop)
    following = body.returns[place].producer
    if following is None or following.name != "add" or body.arguments[place] not in following.operands:
        return None
    own = following.operands[0] is body.arguments[place]
    step = _settled(following.operands[1 if own else 0], body, loop)
    if start is None or last is None or step is None or step <= 0:
        return None
    span = {"LT": last - start, "LE": last - start + 1, "NE": last - start}.get(test.attributes["comparison_direction"])
    return None if span is None else max(0, -(-int(span) // int(step)))


def _settled(value: Value, block: Block, loop: Op) -> float | None:
    """The constant that a value in a loop's block holds in every turn."""
    if value in block.arguments:
        place = value.index
        body = loop.blocks[1]
        return constant_of(loop.operands[place]) if body.returns[place] is body.arguments[place] else None
    return constant_of(value)
