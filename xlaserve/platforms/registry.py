"""Finds platforms: the entry-point group `xlaserve.platforms`, ours and third parties' alike."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points

from xlaserve.errors import ConfigError
from xlaserve.platforms.cpu import CPU
from xlaserve.platforms.cuda import CUDA
from xlaserve.platforms.neuron import NEURON
from xlaserve.platforms.platform import Platform

log = logging.getLogger(__name__)

_BUILT_IN = (NEURON, CUDA, CPU)


def platforms() -> dict[str, Platform]:
    """Every known platform by name, accelerators first: the order in which they are tried."""
    found: dict[str, Platform] = {platform.name: platform for platform in _BUILT_IN}
    for entry in entry_points(group="xlaserve.platforms"):
        if entry.name in found:
            continue
        try:
            found = {entry.name: entry.load(), **found}
        except Exception as error:  # another package's import can fail in any way, and must not stop a start without it
            log.warning("Platform %r of %s cannot be loaded: %s", entry.name, entry.value, error)
    return found


def select_platform(name: str | None, utilization: float | None = None, devices: int = 1) -> Platform:
    """The platform called `name`, or the first that has a device.

    Args:
        name: as in `platforms`.
        utilization: share of a device's memory that is to be used; None for the default.
        devices: how many are wanted.

    Raises:
        ConfigError: unknown, or asked for and absent, or with fewer devices.
    """
    known = platforms()
    if name is not None and name not in known:
        raise ConfigError(f"device must be one of {', '.join(known)}, got {name!r}.")
    for platform in known.values() if name is None else (known[name],):
        platform.reserve(utilization, devices)
    found = known[name] if name is not None else next(platform for platform in known.values() if platform.available())
    found.first_devices(devices)
    return found
