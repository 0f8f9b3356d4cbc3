"""Rules on which operations a graph may hold: N01, N02, N03, N20, N23."""

from __future__ import annotations

from collections.abc import Iterator

from xlaserve.buckets.lint.finding import Hit, NotChecked
from xlaserve.buckets.lint.module import Op, constant_of, walk
from xlaserve.buckets.lint.rule import Subject, rule
from xlaserve.platforms.neuron_targets import Target

_ALLOWED = """
    abs add and atan2 broadcast broadcast_in_dim call ceil clamp compare concatenate constant convert convolution copy cosine divide
    dot dot_general dynamic_slice dynamic_update_slice exponential exponential_minus_one floor gather get_tuple_element iota log
    log_plus_one logistic maximum minimum multiply negate not or pad power reduce reduce_window reshape reverse rng_bit_generator rsqrt
    scatter select shift_right_logical shift_right_arithmetic sign sine slice sqrt subtract tan tanh transpose tuple custom_call
    all_gather all_reduce reduce_scatter all_to_all collective_permute partition_id while
"""
ALLOWED = frozenset(_ALLOWED.split())
"""Named in AWS's lists, or emitted by AWS's own producers of HLO."""

INFERRED = ("bitcast_convert", "erf", "optimization_barrier", "remainder", "round_nearest_even", "shift_left", "xor")
"""In no list, but in graphs that are reported to run, or needed by what does."""

_DENIED = """
    sort topk reduce_precision complex real imag fft cholesky triangular_solve dynamic_reshape dynamic_iota dynamic_pad dynamic_gather
    dynamic_broadcast_in_dim dynamic_conv real_dynamic_slice set_dimension_size get_dimension_size chlo.top_k
"""
DENIED = frozenset(_DENIED.split())
HOST = ("infeed", "outfeed", "send", "recv", "send_done", "recv_done")
_BRANCHES = ("case", "if")


@rule(
    "N01",
    "Only operations that neuronx-cc is known to take. Those that are only inferred to work are warnings.",
    severity="error, warning",
    source="archived neuron-cc operator list; release notes of neuronx-cc; NKIPy's HLO builder",
    limit="The list is pieced together: the true one comes from `neuronx-cc list-operators --framework XLA`.",
)
def operations(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.ops:
        if op.name in ALLOWED or op.name in DENIED or op.name in HOST or op.name in _BRANCHES or op.name.startswith("sdy."):
            continue
        if op.name in INFERRED:
            yield Hit(f"{op.name} is in no operator list; it is only inferred to work", op, "warning")
        elif op.name == "composite" or op.name.startswith("chlo."):
            yield Hit(f"{op.name} is taken apart before the compiler; what it becomes shows in the HLO form", op, "warning")
        else:
            yield Hit(f"{op.name} is not among the operations that neuronx-cc takes", op)


@rule(
    "N02",
    "No sort, no conditional, no reduce_precision, no complex numbers, no linear algebra, no dynamically shaped operation.",
    severity="error, warning",
    source="JAX NeuronX known issues; NCC_EVRF029 (sort), NCC_EMOD025; aws-neuron-sdk#1144, #1339",
)
def refused(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.ops:
        if op.name in ("sort", "topk", "chlo.top_k"):
            yield Hit(f"{op.name}: the compiler has no sort; use the AwsNeuronTopK custom call, or bisection", op)
        elif op.name in DENIED:
            yield Hit(f"{op.name} is refused", op)
        elif op.name in _BRANCHES and constant_of(op.operands[0]) is None:
            yield Hit(f"{op.name}: conditionals are not supported; compute both sides and select", op)
        elif op.name == "composite":
            body = subject.module.functions.get(str(op.attributes.get("decomposition")))
            if body is not None and any(inner.name == "sort" for inner in walk(body)):
                yield Hit("composite falls back to a sort where its name is not known", op, "warning")


@rule(
    "N03",
    "Every size is known when the graph is lowered: no dynamic dimension, no bounded one, no symbolic one.",
    severity="error",
    source="NCC_EMOD025",
)
def static_shapes(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    if subject.module.polymorphic:
        yield Hit("the module was exported with symbolic sizes; export it with numbers")
    for value in subject.module.main.arguments:
        if not value.type.static:
            yield Hit(f"argument {value.name or value.index} has the dynamic type {value.type}")
    for op in subject.ops:
        if not all(value.type.static for value in op.results):
            yield Hit(f"{op.name} gives the dynamic type {op.results[0].type}", op)


@rule(
    "N20",
    "No call to the host from inside a graph: no callback, no debug print, no infeed or outfeed.",
    severity="error",
    source="JAX NeuronX known issues",
)
def no_host_calls(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.ops:
        if op.name in HOST:
            yield Hit(f"{op.name} talks to the host", op)
        elif is_callback(op):
            yield Hit(f"{op.attributes['call_target_name']} calls the host", op)


@rule(
    "N23",
    "No conditional that a platform choice left behind: a `case` with a constant index.",
    severity="warning",
    source="seen with jax.lax.platform_dependent",
)
def no_platform_residue(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named(*_BRANCHES):
        if constant_of(op.operands[0]) is not None:
            yield Hit("case with a constant index: choose the operation when tracing, or lower a primitive of your own", op, "warning")


def is_callback(op: Op) -> bool:
    """Whether a custom call goes to a Python function of the host."""
    return op.name == "custom_call" and "callback" in str(op.attributes.get("call_target_name"))
