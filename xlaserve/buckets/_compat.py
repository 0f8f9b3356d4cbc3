"""Where the versions of JAX that xlaserve supports differ, from 0.10.0 to 0.12: all that differs is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jaxlib import _jax  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]

try:
    from jaxlib import _hlo  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
except ImportError:  # jaxlib 0.10.0 has it all in one module
    _hlo = _jax

hlo: Any = _hlo
"""The module with XLA's HLO: `HloModule`, `HloPrintOptions`."""

_FORMER_FIELDS = {"auto_spmd_lowering": False}
"""Fields of JAX's unloaded executable that later versions do not have: that one until 0.10.0."""


def construct(kind: type[Any], known: Mapping[str, Any]) -> Any:
    """One of JAX's internal dataclasses, of those fields that this version gives it.

    Args:
        kind: the dataclass.
        known: every field of any version that is known.

    Raises:
        TypeError: this version asks for a field that is not known.
    """
    known = {**_FORMER_FIELDS, **known}
    wanted = {field.name for field in fields(kind)}
    if unknown := wanted - known.keys():
        raise TypeError(f"it asks for {', '.join(sorted(unknown))}")
    return kind(**{field: value for field, value in known.items() if field in wanted})
