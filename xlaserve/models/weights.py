"""Weights from a checkpoint to the devices, one parameter at a time: no second copy of the model in memory.

Every parameter that the model has must be in the checkpoint with the right shape, and every tensor in the checkpoint must be used;
what is missing or left over is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from xlaserve.errors import CheckpointError
from xlaserve.kernels.packs import Packing
from xlaserve.kernels.panels import PanelRows, matrix_shape
from xlaserve.models.host_memory import HostMemory
from xlaserve.models.layers import FIRST_ROW, FUSED, SCALE, Rows, rows_key
from xlaserve.models.quantization import quantize
from xlaserve.platforms.mesh import join, part_shape
from xlaserve.platforms.platform import Device

if TYPE_CHECKING:
    from xlaserve.models.checkpoint import Checkpoint

_SLAB_VALUES = 1 << 20
"""How many values are quantized at a time, so that what that takes stays small beside the tensor."""

_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "masked_bias", "attn.bias")
"""Endings of tensors that some checkpoints carry although they can be computed."""


def load_weights(
    checkpoint: Checkpoint,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    devices: Sequence[Device],
    *,
    rows: Mapping[str, Rows],
    packing: Packing | None = None,
) -> tuple[jax.Array, ...]:
    """Read, convert and place every parameter; those that have a scale beside them are quantized.

    Args:
        checkpoint: where tensors are read from.
        parameters: name, shape and dtype of every parameter, and how it is split, in the order wanted back.
        devices: where to put them, in the order of the parts.
        rows: which rows of the checkpoint's tensors each device has, from `checkpoint_rows`.
        packing: of `parameters`, where some are to lie in packs: then `packing.arrays` are returned.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the model's, or is not used by the model; or it is to be quantized and
            holds numbers that are not finite.
    """
    tensors = {name: sources(name, experts_of(parameter)) for name, parameter in parameters.items() if not name.endswith(SCALE)}
    _check_names(checkpoint, (source for names in tensors.values() for source in names), "lm_head.weight" not in parameters)
    arrays = PackedArrays(packing or Packing(parameters, packs=False), devices)
    for name in tensors:
        parameter, scale = parameters[name], f"{name}_scale"
        hosts = arrays.begin(name)
        scales = arrays.begin(scale) if scale in parameters else None
        if not tensors[name]:
            for shard, host in enumerate(hosts):
                host.fill(shard * rows["embed_tokens"].held)
        at = 0
        flat = [_as_matrix(host) for host in hosts]
        for source in tensors[name]:
            at += _fill(flat, scales, at, source, checkpoint, parameter, rows)
        arrays.end(name, hosts)
        if scales is not None:
            arrays.end(scale, scales)
    return arrays.finish()


class PackedArrays:
    """Puts parameters together in memory of the host and gives them to the devices: one after the other, or all of a pack at the end.

    Args:
        packing: which arrays there are to be, and what lies in them.
        devices: where to put them, in the order of the parts.
    """

    def __init__(self, packing: Packing, devices: Sequence[Device]) -> None:
        self._packing = packing
        self._devices = devices
        self._memory = _memory(devices)
        self._packs: dict[str, list[np.ndarray]] = {}
        self._placed: dict[str, jax.Array] = {}

    def begin(self, name: str) -> list[np.ndarray]:
        """What each device is to have of a parameter, to be written."""
        array = self._packing.array_of(name)
        if array == name:
            return _hosts(self._packing.parameters[name], self._devices, self._memory)
        if array not in self._packs:
            self._packs[array] = _hosts(self._packing.arrays[array], self._devices, self._memory)
        return [self._packing.part(host, name) for host in self._packs[array]]

    def end(self, name: str, hosts: Sequence[np.ndarray]) -> None:
        """A parameter is written: `hosts` are those of `begin`."""
        if self._packing.array_of(name) == name:
            self.take(name, _place(hosts, self._packing.parameters[name], self._devices))

    def take(self, name: str, array: jax.Array) -> None:
        """A parameter that devices have already."""
        if self._packing.array_of(name) == name:
            self._placed[name] = array
        else:
            self.begin(name)[0][...] = np.asarray(array)

    def finish(self) -> tuple[jax.Array, ...]:
        """All arrays of the packing, in its order, when every parameter is written or taken."""
        for name, hosts in self._packs.items():
            self._placed[name] = _place(hosts, self._packing.arrays[name], self._devices)
        return tuple(self._placed[name] for name in self._packing.arrays)


def _as_matrix(host: np.ndarray) -> np.ndarray | PanelRows:
    """What rows of the checkpoint are put into: experts' matrices follow each other."""
    if host.ndim == 4:
        return PanelRows(host)
    return host.reshape(-1, host.shape[-1]) if host.ndim > 1 else host


def _fill(
    hosts: Sequence[np.ndarray | PanelRows],
    scales: Sequence[np.ndarray] | None,
    at: int,
    source: str,
    checkpoint: Checkpoint,
    parameter: jax.ShapeDtypeStruct,
    rows: Mapping[str, Rows],
) -> int:
    """Put every device's part of one of the checkpoint's tensors into `hosts`, from row `at` on, and the scales of its rows into `scales`.

    Returns:
        Rows of each part.
    """
    stored = checkpoint.read(source)
    columns = matrix_shape(parameter.shape)[1:][-1:]
    part = rows.get(rows_key(source)) or whole_rows(parameter, len(hosts))
    wanted = (part.total, *columns)
    if stored.shape != wanted:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {source} has shape {list(stored.shape)}, but config.json asks for {list(wanted)}."
        )
    for shard, host in enumerate(hosts):
        mine = stored[part.of(shard)]
        width = host.shape[-1]
        held = slice(shard * width, (shard + 1) * width) if host.shape[1:] != columns else slice(None)
        end, padding = at + len(mine), slice(at + len(mine), at + part.held)
        host[padding] = 0
        if scales is None:
            host[at:end] = mine[..., held]
        else:
            scales[shard][padding] = 0
            _quantize(mine, held, host, at, scales[shard][at:end], f"{checkpoint.path}: tensor {source}")
    return part.held


def _quantize(stored: np.ndarray, held: slice, host: np.ndarray | PanelRows, at: int, scale: np.ndarray, what: str) -> None:
    """Quantize whole rows and keep some of their columns, from row `at` on: each device has the scales of the whole rows."""
    step = max(1, _SLAB_VALUES // stored.shape[-1])
    for first in range(0, len(stored), step):
        some = slice(first, first + step)
        values, scale[some] = quantize(stored[some])
        if not np.isfinite(scale[some]).all():
            raise CheckpointError(f"{what} holds numbers that are not finite, which cannot be quantized: leave out --quantization.")
        host[at + first : at + first + len(values)] = values[..., held]


def _memory(devices: Sequence[Device]) -> HostMemory:
    """Where parameters are put together: on CPU that is where they stay."""
    return HostMemory(huge=devices[0].platform == "cpu")


def _hosts(parameter: jax.ShapeDtypeStruct, devices: Sequence[Device], memory: HostMemory) -> list[np.ndarray]:
    """A buffer for what each device is to have."""
    return [memory.empty(part_shape(parameter), np.dtype(parameter.dtype)) for _ in devices]


def placeholder_weights(arrays: Mapping[str, jax.ShapeDtypeStruct], devices: Sequence[Device]) -> tuple[jax.Array, ...]:
    """Weights of the right shapes that mean nothing, all of them one number: to run graphs where no checkpoint is to be read, and
    nothing is to be compiled to make weights.
    """
    placed: list[jax.Array] = []
    memory = _memory(devices)
    for array in arrays.values():
        hosts = _hosts(array, devices, memory)
        for host in hosts:
            host.fill(1 if host.dtype.kind == "i" else 0.01)
        placed.append(_place(hosts, array, devices))
    return tuple(placed)


def _place(hosts: Sequence[np.ndarray], parameter: jax.ShapeDtypeStruct, devices: Sequence[Device]) -> jax.Array:
    # The buffers are aligned as the CPU client wants them, so that there they are taken over and not copied.
    return join([jax.device_put(host, device) for host, device in zip(hosts, devices, strict=True)], parameter, devices)


def sources(name: str, experts: int = 0) -> tuple[str, ...]:
    """The checkpoint's tensors that make up one parameter, in order.

    Args:
        name: of the parameter.
        experts: how many it is of; 0 where it is of no experts.
    """
    *path, module, leaf = name.split(".")
    if leaf == FIRST_ROW:
        return ()
    paths = [(*path, str(expert)) for expert in range(experts)] if experts else [tuple(path)]
    return tuple(".".join((*place, part, leaf)) for place in paths for part in FUSED.get(module, (module,)))


def experts_of(parameter: jax.ShapeDtypeStruct) -> int:
    """How many experts a parameter is of: only theirs have three dimensions."""
    return parameter.shape[0] if len(parameter.shape) == 3 else 0


def whole_rows(parameter: jax.ShapeDtypeStruct, devices: int) -> Rows:
    """Rows of a parameter, or of one expert's, that every device has."""
    count = matrix_shape(parameter.shape)[1 if experts_of(parameter) else 0]
    return Rows(count, count, devices)


def _check_names(checkpoint: Checkpoint, wanted: Iterable[str], tied: bool) -> None:
    needed = set(wanted)
    present = set(checkpoint.tensors)
    if missing := sorted(needed - present):
        raise CheckpointError(f"{checkpoint.path}: {len(missing)} tensors are missing: {_some(missing)}. The checkpoint is incomplete.")
    ignored = {name for name in present if name.endswith(_DERIVED) or (tied and name == "lm_head.weight")}
    if unused := sorted(present - needed - ignored):
        raise CheckpointError(
            f"{checkpoint.path}: {len(unused)} tensors are not used by this architecture: {_some(unused)}. "
            "The checkpoint holds a model that its config.json does not describe."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
