"""Executables as the bytes that the PJRT client makes of them, and back. Nothing of a file is unpickled.

JAX's own `serialize_executable` wraps the client's bytes into a pickle with shapes, trees and places. All of these follow from the graph's
shapes, so here only the client's bytes are kept. What JAX has no public name for is used in this file and in `_compat` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from xlaserve.buckets._compat import construct
from xlaserve.errors import ArtifactError
from xlaserve.platforms.mesh import sharding
from xlaserve.platforms.platform import Device


def serialize(compiled: jax.stages.Compiled) -> bytes:
    """The client's bytes of a compiled graph. ArtifactError where the platform has none."""
    executable: Any = compiled.runtime_executable()
    try:
        return executable.serialize()
    except RuntimeError as error:
        raise ArtifactError(f"the platform gives no bytes of its executables: {first_line(error)}") from error


def load(name: str, content: bytes, arguments: tuple[Any, ...], results: Any, devices: Sequence[Device]) -> jax.stages.Compiled:
    """A compiled graph from the client's bytes; calling it costs what calling any `Compiled` costs.

    Args:
        name: of the graph, for profiles and errors.
        content: from `serialize`.
        arguments, results: shapes and dtypes of what the graph takes and gives.
        devices: where it runs.

    Raises:
        ArtifactError: the client does not take the bytes, they are another graph's, or this version of JAX wants more than these shapes.
    """
    try:
        return _load(name, content, arguments, results, devices)
    except (ImportError, AttributeError, TypeError) as error:
        raise ArtifactError(f"JAX {jax.__version__} builds executables in a way that xlaserve does not know: {error}") from error


def _load(name: str, content: bytes, arguments: tuple[Any, ...], results: Any, devices: Sequence[Device]) -> jax.stages.Compiled:
    from jax._src.core import ShapedArray
    from jax._src.interpreters.pxla import UnloadedMeshExecutable, is_default_layout
    from jax._src.layout import Layout
    from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]

    listed, client = xla_client.DeviceList(tuple(devices)), devices[0].client
    try:
        executable: Any = client.deserialize_executable(content, executable_devices=listed, compile_options=_placed_on(devices))
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        raise ArtifactError(f"the platform does not load it: {first_line(error)}") from error
    layouts_in = [Layout.from_pjrt_layout(layout) for layout in executable.get_parameter_layouts()]
    layouts_out = [Layout.from_pjrt_layout(layout) for layout in executable.get_output_layouts()]
    taken, given = jax.tree.leaves(arguments), jax.tree.leaves(results)
    for what, here, layouts in (("arguments", taken, layouts_in), ("results", given, layouts_out)):
        ranks, found = [len(array.shape) for array in here], [len(layout.major_to_minor) for layout in layouts]
        if ranks != found:
            raise ArtifactError(f"it is another graph's: its {what} are not this graph's ({len(found)} there, {len(ranks)} here)")
    avals = [ShapedArray(array.shape, array.dtype) for array in taken]
    places = [sharding(array, devices) for array in taken]
    known: dict[str, Any] = {
        "xla_executable": executable,
        "device_list": listed,
        "backend": client,
        "input_avals": avals,
        "input_shardings": tuple(places),
        "output_avals": [ShapedArray(array.shape, array.dtype) for array in given],
        "output_shardings": tuple(sharding(array, devices) for array in given),
        "committed": True,
        "name": name,
        "unordered_effects": [],
        "ordered_effects": [],
        "keepalive": [],
        "host_callbacks": [],
        "kept_var_idx": set(range(len(taken))),
        "mut": None,
        "xla_in_layouts": layouts_in,
        "dispatch_in_layouts": [
            None if is_default_layout(layout, *where) else layout for layout, *where in zip(layouts_in, places, avals, strict=True)
        ],
        "xla_out_layouts": layouts_out,
        "all_args_info": None,
        "pgle_profiler": None,
    }
    unloaded = construct(UnloadedMeshExecutable, known)
    tree = jax.tree.structure((arguments, {}))
    return jax.stages.Compiled(unloaded.load(), [], jax.tree.unflatten(tree, taken), jax.tree.structure(results), no_kwargs=True)


def _placed_on(devices: Sequence[Device]) -> Any:
    """Options that load an executable onto these devices, one for each of its partitions. Its bytes name those that it was compiled for,
    and clients take these where no others are named.
    """
    from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]

    options: Any = xla_client.CompileOptions()
    options.num_partitions = len(devices)
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id for device in devices]], np.int32))
    return options


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a compiled graph by the compiler's analysis: arguments, results, results in place of arguments, and workspace."""
    analysis = compiled.memory_analysis()
    return {name: int(getattr(analysis, f"{name}_size_in_bytes", 0)) for name in ("argument", "output", "alias", "temp")}


def first_line(error: Exception) -> str:
    """What an error says, as one line; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
