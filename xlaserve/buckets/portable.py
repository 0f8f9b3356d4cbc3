"""Graphs as portable StableHLO (`jax.export`): traced once anywhere, compiled where they run.

The file holds a flat function of arrays, so that no pytree has to be read back; what is donated is said again when it is compiled,
because an export does not carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export

from xlaserve.buckets.executable import first_line
from xlaserve.buckets.graphs import GraphSpec, entry, lower_entry
from xlaserve.buckets.ladder import Bucket, UpkeepBucket
from xlaserve.errors import ArtifactError
from xlaserve.kernels.library import TARGETS
from xlaserve.platforms.platform import Device

_CUSTOM_CALLS = ("AwsNeuronTopK", "AwsNeuronCustomNativeKernel", *TARGETS)
"""What graphs may call that only the target's compiler, or our own library, knows; JAX keeps no promise of compatibility for these, the
target's maker does, and of ours the version is part of what a graph depends on.
"""


def export(spec: GraphSpec, bucket: Bucket | UpkeepBucket, jax_name: str) -> bytes:
    """Trace one graph for a platform, which need not be here.

    Args:
        spec: what graphs have in common.
        bucket: the graph.
        jax_name: JAX's name of the platform.
    """
    graph = entry(spec, bucket)
    leaves, tree = jax.tree.flatten(graph.arguments)

    def flat(*arrays: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(graph.function(*jax.tree.unflatten(tree, arrays)))

    flat.__name__ = _function_name(bucket)
    checks = [jax.export.DisabledSafetyCheck.custom_call(target) for target in _CUSTOM_CALLS]
    exported = jax.export.export(jax.jit(flat, keep_unused=True), platforms=[jax_name], disabled_checks=checks)(*leaves)
    return bytes(exported.serialize())


def lower_portable(content: bytes, spec: GraphSpec, bucket: Bucket | UpkeepBucket, devices: Sequence[Device]) -> jax.stages.Lowered:
    """What `export` gave, ready to be compiled for `devices`.

    Raises:
        ArtifactError: it cannot be read, or is not this graph for this platform.
    """
    graph = entry(spec, bucket)
    exported = read_exported(content)
    for what, here, found in (("arguments", graph.arguments, exported.in_avals), ("results", graph.results, exported.out_avals)):
        shapes = [(tuple(array.shape), str(array.dtype)) for array in jax.tree.leaves(here)]
        if shapes != [(tuple(array.shape), str(array.dtype)) for array in found]:
            raise ArtifactError(f"its {what} are not this graph's")
    tree = jax.tree.structure(graph.results)

    def step(*args: Any) -> Any:
        return jax.tree.unflatten(tree, exported.call(*jax.tree.leaves(args)))

    step.__name__ = _function_name(bucket)
    try:
        lowered = lower_entry(graph._replace(function=step), devices)
    except (ValueError, NotImplementedError) as error:  # of another platform, or of an unknown calling convention
        raise ArtifactError(f"JAX does not take it: {first_line(error)}") from error
    if devices[0].platform == "cpu":
        _forget_places(lowered)
    return lowered


def _forget_places(lowered: jax.stages.Lowered) -> None:
    """Drop the lines of code that operations come from: XLA:CPU keeps them in executables, which are a third smaller without and load in
    three quarters of the time.
    """
    from jaxlib.mlir.passmanager import PassManager

    module: Any = lowered.compiler_ir("stablehlo")
    with module.context:
        PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)


def read_exported(content: bytes) -> jax.export.Exported:
    """What `export` gave. ArtifactError where it cannot be read."""
    try:
        return jax.export.deserialize(bytearray(content))
    except Exception as error:  # the reader of the format raises whatever the bytes lead it to
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ArtifactError(f"it is none that JAX {jax.__version__} reads: {what}") from error


def _function_name(bucket: Bucket | UpkeepBucket) -> str:
    return bucket.name.replace("-", "_")
