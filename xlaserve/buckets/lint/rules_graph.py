"""Rules on a graph as a whole: N19, N21, N22, N24 to N27."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod

from xlaserve.buckets.lint.finding import Hit, NotChecked
from xlaserve.buckets.lint.module import Block, Module, Op
from xlaserve.buckets.lint.rule import Subject, rule
from xlaserve.buckets.lint.rules_loops import trip_count
from xlaserve.platforms.neuron_targets import Target

_MIB = 1 << 20
_STATE = ("kv", "state")
_SOME_INSTRUCTIONS = 2_500_000
_MOST_INSTRUCTIONS = 5_000_000
_SEGMENTS = (512, 1024, 2048, 4096, 8192)
_JAX = ((0, 9, 0), (0, 10, 0))
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
_UNKNOWN_BUCKET = "the module was read from a file that does not say which bucket it is"


@rule(
    "N19",
    "Every KV and state argument is donated and aliased to a result of its type, and no other argument is.",
    severity="error",
    source="aliasing_output_rewrite_pass of the Neuron JAX plugin",
)
def aliased_state(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    module = subject.module
    names = subject.facts.donated if subject.facts else _STATE
    wanted = {value.index for value in module.main.arguments if names and value.name.startswith(names)}
    if subject.facts is None and not wanted:
        yield NotChecked("no argument is named kv or state, so which ones should be donated is not known")
        return
    for value in module.main.arguments:
        label = value.name or f"number {value.index}"
        if value.index not in module.aliases:
            if value.index in wanted:
                yield Hit(f"argument {label} is not donated: every step would copy it")
            continue
        output = module.aliases[value.index]
        if value.index not in wanted:
            yield Hit(f"argument {label} is donated, and its caller still needs it")
        elif output is not None and module.main.returns[output].type != value.type:
            yield Hit(f"argument {label} is aliased to a result of the type {module.main.returns[output].type}, not {value.type}")


@rule(
    "N21",
    "Arguments and twice the largest intermediate fit the memory of one core; constants stay below 1 MiB, as weights are arguments.",
    severity="error, warning",
    source="EOOM001, EOOM002, EVRF009; Neuron persistent cache",
    limit="An estimate from types: what the compiler needs for spills and scratch only it knows.",
)
def memory(subject: Subject, target: Target) -> Iterator[Hit | NotChecked]:
    limit = target.memory
    arguments = sum(value.type.bytes for value in subject.module.main.arguments)
    largest: tuple[int, Op | None] = (0, None)
    for op in subject.ops:
        size = max((value.type.bytes for value in op.results), default=0)
        if op.name == "constant" and size > _MIB and (op.attributes.get("value") is None or len(op.attributes["value"]) > 1):
            yield Hit(f"constant of {size / _MIB:.1f} MiB; pass it as an argument", op, "warning")
        # Loops carry what others made, and an update of a donated argument happens in place.
        if op.name not in ("while", "call", "scatter", "dynamic_update_slice") and size > largest[0]:
            largest = size, op
    if arguments + 2 * largest[0] > limit:
        text = f"arguments of {arguments / _MIB:,.0f} MiB and twice the largest intermediate, {largest[0] / _MIB:,.0f} MiB, "
        yield Hit(text + f"are more than the {limit / _MIB:,.0f} MiB of a core of {target.name}", largest[1])


@rule(
    "N22",
    "A graph compiles to fewer than 5 million instructions.",
    severity="error, warning",
    source="EVRF007, EBVF030, EXTP004; reports of the 5M check",
    limit="An estimate from tile counts (128 x 128 x 512 per matrix instruction, 128 x 512 per other one): neuronx-cc counts its own.",
)
def instructions(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    count = _instructions(subject.module, subject.module.main)
    if count > _SOME_INSTRUCTIONS:
        level = "error" if count > _MOST_INSTRUCTIONS else "warning"
        yield Hit(f"about {count / 1e6:.1f} million instructions; use smaller buckets or more cores", None, level)


def _instructions(module: Module, block: Block) -> int:
    total = 0
    for op in block.ops:
        if op.name == "call":
            total += _instructions(module, module.functions[op.attributes["callee"]])
        elif op.name == "while":
            total += (trip_count(op) or 1) * sum(_instructions(module, inner) for inner in op.blocks)
        elif op.name == "dot_general":
            total += _matrix_instructions(op)
        elif op.name not in ("constant", "iota", "reshape", "broadcast_in_dim"):
            total += max((-(-value.type.size // (128 * 512)) for value in op.results), default=0)
    return total


def _matrix_instructions(op: Op) -> int:
    left, right = (value.type.shape for value in op.operands)
    batch, contract = op.attributes.get("lhs_batching_dimensions", ()), op.attributes.get("lhs_contracting_dimensions", ())
    k = prod(left[d] or 1 for d in contract)
    b = prod(left[d] or 1 for d in batch)
    m = op.operands[0].type.size // max(b * k, 1)
    n = prod(d or 1 for d in right) // max(b * k, 1)
    m, n = min(m, n), max(m, n)
    return b * -(-m // 128) * -(-k // 128) * -(-n // 512)


@rule(
    "N24",
    "A token-generation graph makes nothing as long as the whole context but masks: paged KV is not flattened.",
    severity="warning",
    source="NxD Inference feature guide (prefix caching: flattened KV)",
)
def no_flat_cache(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    if subject.facts is None:
        yield NotChecked(_UNKNOWN_BUCKET)
        return
    if not (subject.facts.generates and subject.facts.full_width):
        return
    for op in subject.named("gather", "dynamic_slice", "concatenate"):
        kind = op.results[0].type
        if kind.is_float and len(kind.shape) > 2 and _holds_context(kind.shape, subject.facts.width_tokens):
            text = f"gathers the KV of the whole context, {kind.bytes / _MIB:.1f} MiB; a native attention kernel reads it in place"
            yield Hit(text, op, "warning")


def _holds_context(shape: tuple[int | None, ...], tokens: int) -> bool:
    """Whether neighbouring dimensions are as many tokens as the context: [.., tokens, ..] or [.., blocks, block_size, ..]."""
    return tokens in shape or any((a or 0) * (b or 0) == tokens for a, b in pairwise(shape))


@rule(
    "N25",
    "Collectives run over a legal tensor-parallel degree, in groups of neighbouring cores.",
    severity="warning",
    source="NxD Inference API guide (tp_degree); JAX NeuronX known issues (mesh)",
    limit="Which cores of an instance are connected, `neuron-ls --topology` says.",
)
def legal_collectives(subject: Subject, target: Target) -> Iterator[Hit | NotChecked]:
    for op in subject.named(*_COLLECTIVES):
        groups = op.attributes.get("replica_groups")
        if not groups or not isinstance(groups, list):
            yield NotChecked("a collective's replica groups are not listed, or in a form that is not read")
            continue
        for group in groups:
            if len(group) not in target.parallel:
                degrees = ", ".join(map(str, target.parallel))
                yield Hit(f"{op.name} over {len(group)} cores; {target.name} takes {degrees}", op, "warning")
                break
            if group != list(range(group[0], group[0] + len(group))):
                yield Hit(f"{op.name} over the cores {group}, which are no neighbours", op, "warning")
                break


@rule(
    "N26",
    "Contexts are multiples of 128 tokens; chunks that a native kernel encodes are of 512, 1024, 2048, 4096 or 8192.",
    severity="warning, info",
    source="vLLM Neuron additional-config and prefix caching",
)
def tile_multiples(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    facts = subject.facts
    if facts is None:
        yield NotChecked(_UNKNOWN_BUCKET)
        return
    if facts.width_tokens % 128:
        yield Hit(f"block tables reach {facts.width_tokens} tokens, which is no multiple of 128", None, "warning")
    if facts.length % 128:
        yield Hit(f"chunks of {facts.length} tokens are no multiple of 128", None, "warning")
    elif facts.length and facts.length not in _SEGMENTS:
        known = ", ".join(map(str, _SEGMENTS))
        text = f"chunks of {facts.length} tokens; native attention kernels encode {known}"
        yield Hit(text, None, "warning" if facts.native_attention else "info")


@rule(
    "N27",
    "Graphs are lowered by a JAX that the Neuron plugin supports: 0.9.0 to 0.10.0.",
    severity="warning",
    source="Neuron SDK 2.32 release notes (jax)",
)
def supported_jax(subject: Subject, _: Target) -> Iterator[Hit | NotChecked]:
    if subject.facts is None:
        yield NotChecked("modules do not say which JAX lowered them")
        return
    version = tuple(int(part) for part in subject.facts.jax_version.split(".")[:3])
    if not _JAX[0] <= version <= _JAX[1]:
        yield Hit(f"lowered by jax {subject.facts.jax_version}; install the neuron extra, which pins 0.10.0", None, "warning")
