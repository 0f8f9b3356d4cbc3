"""Lints every graph that an engine would compile, without weights and without the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from xlaserve.buckets.graphs import GraphSpec, lower_for
from xlaserve.buckets.ladder import BLANK, COPY, SEAT, Bucket, ContextBucket, GenerateBucket, Ladder, UpkeepBucket
from xlaserve.buckets.lint.contract import contract
from xlaserve.buckets.lint.hlo import hlo_text, read_hlo
from xlaserve.buckets.lint.linter import Linter
from xlaserve.buckets.lint.one_device import one_device
from xlaserve.buckets.lint.report import Report
from xlaserve.buckets.lint.rule import Facts, Subject
from xlaserve.buckets.lint.stablehlo import read_stablehlo
from xlaserve.platforms.neuron_targets import Target

_BUILT_IN = ("tiled", "gather", "mosaic")
_DONATED: dict[UpkeepBucket, tuple[str, ...]] = {SEAT: ("state",), COPY: ("kv",), BLANK: ()}


def lint_ladder(
    spec: GraphSpec,
    ladder: Ladder,
    targets: Sequence[Target],
    jax_name: str,
    on_graph: Callable[[str, int], None] | None = None,
) -> tuple[Report, ...]:
    """Lower every graph of a ladder and lint it in both forms.

    Args:
        spec: what the graphs have in common, with the target platform's choices.
        ladder: the buckets.
        targets: the chips; each graph is lowered once for all.
        jax_name: JAX's name of the platform.
        on_graph: told about every graph that is done, and how many are.

    Returns:
        A report for each target.
    """
    linters = [Linter(target) for target in targets]
    for done, bucket in enumerate(ladder.graphs, 1):
        module = one_device(lower_for(spec, bucket, jax_name).compiler_ir("stablehlo"))
        facts = facts_of(spec, bucket, ladder)
        for read in (read_stablehlo(module, bucket.name), read_hlo(hlo_text(module), bucket.name)):
            subject = Subject(read, facts)
            for linter in linters:
                linter.add(subject)
        if on_graph is not None:
            on_graph(bucket.name, done)
    return tuple(linter.report() for linter in linters)


def facts_of(spec: GraphSpec, bucket: Bucket | UpkeepBucket, ladder: Ladder) -> Facts:
    """What is known of one graph of a ladder."""
    if isinstance(bucket, UpkeepBucket):
        return Facts(contract(spec, bucket), _DONATED[bucket], jax.__version__)
    return Facts(
        contract=contract(spec, bucket),
        donated=("kv", "state"),
        jax_version=jax.__version__,
        width_tokens=bucket.width * spec.block_size,
        full_width=bucket.width == max(b.width for b in ladder.generate),
        generates=isinstance(bucket, GenerateBucket),
        length=bucket.length if isinstance(bucket, ContextBucket) else 0,
        native_attention=spec.attention not in _BUILT_IN,
    )
