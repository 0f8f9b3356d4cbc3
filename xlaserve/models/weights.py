"""Weights from a checkpoint to the device, one parameter at a time: no second copy of the model in memory.

Every parameter that the model has must be in the checkpoint with the right shape, and every tensor in the checkpoint must be used;
what is missing or left over is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from xlaserve.errors import CheckpointError
from xlaserve.models.layers import FUSED
from xlaserve.platforms.platform import Device

if TYPE_CHECKING:
    from xlaserve.models.checkpoint import Checkpoint

_ALIGNMENT = 64
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "masked_bias", "attn.bias")
"""Endings of tensors that some checkpoints carry although they can be computed."""


def load_weights(
    checkpoint: Checkpoint,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    device: Device,
    *,
    fused_rows: Mapping[str, int],
) -> tuple[jax.Array, ...]:
    """Read, convert and place every parameter.

    Args:
        checkpoint: where tensors are read from.
        parameters: name, shape and dtype of every parameter, in the order wanted back.
        device: where to put them.
        fused_rows: how many rows each of the checkpoint's tensors has that a fused parameter is made of, from `fused_rows`.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the model's, or is not used by the model.
    """
    sources = {name: _sources(name) for name in parameters}
    _check_names(checkpoint, (source for names in sources.values() for source in names), "lm_head.weight" not in parameters)
    placed: list[jax.Array] = []
    for name, parameter in parameters.items():
        host = _aligned(parameter.shape, np.dtype(parameter.dtype))
        at = 0
        for source in sources[name]:
            stored = checkpoint.read(source)
            rows = fused_rows[source.split(".")[-2]] if len(sources[name]) > 1 else parameter.shape[0]
            wanted = (rows, *parameter.shape[1:])
            if stored.shape != wanted:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {source} has shape {list(stored.shape)}, but config.json asks for {list(wanted)}."
                )
            host[at : at + rows] = stored
            at += rows
        # The buffer is aligned as the CPU client wants it, so that there it is taken over and not copied.
        placed.append(jax.device_put(host, device))
    return tuple(placed)


def placeholder_weights(parameters: Mapping[str, jax.ShapeDtypeStruct], device: Device) -> tuple[jax.Array, ...]:
    """Parameters of the right shapes on `device` that mean nothing, to run graphs where no checkpoint is to be read."""
    placed: list[jax.Array] = []
    for parameter in parameters.values():
        host = _aligned(parameter.shape, np.dtype(parameter.dtype))
        host.fill(0.01)
        placed.append(jax.device_put(host, device))
    return tuple(placed)


def _sources(name: str) -> tuple[str, ...]:
    """The checkpoint's tensors that make up one parameter."""
    *path, module, leaf = name.split(".")
    return tuple(".".join((*path, part, leaf)) for part in FUSED.get(module, (module,)))


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


def _aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % _ALIGNMENT
    return raw[skip : skip + size].view(dtype).reshape(shape)
