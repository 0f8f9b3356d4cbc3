"""Rules on element types: N10 to N13, N18."""

from __future__ import annotations

import math
from collections.abc import Iterator

from xlaserve.buckets.lint.finding import Hit, NotChecked, Severity
from xlaserve.buckets.lint.module import Op, Tensor, Value, dtype_bits
from xlaserve.buckets.lint.rule import Subject, rule
from xlaserve.platforms.neuron_targets import Target

_PLAIN = ("f32", "bf16", "f16", "s32", "u32", "s8", "u8", "pred", "f8e4m3", "f8e5m2", "token")


@rule(
    "N10",
    "Element types are float32, bfloat16, float16, int32, uint32, int8, uint8, bool, float8_e4m3 or float8_e5m2.",
    severity="error, warning",
    source="Neuron data types; EVRF004, EVRF005, EVRF051, ESPP004, ESFH002",
)
def element_types(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for value in subject.module.main.arguments:
        if found := _objection(value.type):
            yield Hit(f"argument {value.name or value.index}: {found[0]}", None, found[1])
    for op in subject.ops:
        for value in op.results:
            found = _objection(value.type)
            if found and not _is_random_key(value, subject):
                yield Hit(found[0], op, found[1])
                break


def _objection(kind: Tensor) -> tuple[str, Severity] | None:
    if kind.dtype in _PLAIN:
        return None
    if kind.dtype in ("s16", "u16"):
        return f"{kind.dtype} is in no list of supported types", "warning"
    if kind.dtype == "f8e4m3fn":
        return "float8_e4m3fn needs --experimental-unsafe-fp8e4m3fn-as-fp8e4m3 on this chip; use float8_e4m3", "error"
    if kind.is_integer and dtype_bits(kind.dtype) == 64:
        return f"{kind.dtype}: 64-bit integers are cut to 32 bits; keep jax_enable_x64 off", "error"
    return f"{kind.dtype} is not supported", "error"


def _is_random_key(value: Value, subject: Subject) -> bool:
    """The key and the new key of rng_bit_generator are uint64, and that is as the compiler wants it."""
    if value.type.dtype != "u64":
        return False
    near = [*subject.users.get(value, ()), *([value.producer] if value.producer else [])]
    return any(op.name == "rng_bit_generator" for op in near)


@rule(
    "N11",
    "Matrix products are of floating-point numbers; integers are converted before.",
    severity="error",
    source="JAX NeuronX known issues (int dot); EVRF035",
)
def float_products(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("dot", "dot_general", "convolution"):
        if not all(value.type.is_float for value in op.operands[:2]):
            yield Hit(f"{op.name} of {op.operands[0].type.dtype} and {op.operands[1].type.dtype}; convert to bfloat16 first", op)


@rule(
    "N12",
    "No scatter that computes on integers, no integer all_reduce or reduce_scatter, no 64-bit power.",
    severity="error",
    source="EVRF016, EVRF060, EVRF061, EVRF062, EVRF063",
)
def no_integer_reductions(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("scatter", "all_reduce", "reduce_scatter", "power"):
        kind = op.results[0].type
        if op.name == "power":
            if dtype_bits(kind.dtype) == 64:
                yield Hit("power on 64-bit numbers", op)
        elif not kind.is_float and (op.name != "scatter" or op.blocks[0].ops):
            yield Hit(f"{op.name} computes on {kind.dtype}; gather, compute and overwrite instead, or use float32", op)


@rule(
    "N13",
    "Arithmetic shifts to the right are of 32-bit integers.",
    severity="error",
    source="EVRF022",
)
def wide_shifts(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("shift_right_arithmetic"):
        if dtype_bits(op.operands[0].type.dtype) != 32:
            yield Hit(f"shift_right_arithmetic of {op.operands[0].type.dtype}", op)


@rule(
    "N18",
    "Masks are finite: no -inf constant that is added, selected or multiplied.",
    severity="warning",
    source="neuronx-cc --enable-saturate-infinity (trn1 only)",
)
def finite_masks(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named("constant"):
        content = op.attributes.get("value")
        if op.results[0].type.is_float and content is not None and any(math.isinf(x) and x < 0 for x in content.tolist()):
            for user in _users(op, subject):
                yield Hit(f"-inf goes into {user.name}; use a large finite number", user, "warning")


def _users(op: Op, subject: Subject) -> Iterator[Op]:
    """Who takes a constant; the start value of a reduction and the neutral element of a maximum are no masks."""
    for user in subject.users.get(op.results[0], ()):
        if user.name in ("broadcast_in_dim", "reshape", "convert"):
            yield from _users(user, subject)
        elif user.name not in ("reduce", "reduce_window", "maximum"):
            yield user
