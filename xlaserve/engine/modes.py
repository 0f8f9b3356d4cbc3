"""What an operator may ask of an engine: how to pause it, and how deep it is to sleep. No JAX."""

from __future__ import annotations

from typing import Literal, get_args

from xlaserve.errors import InvalidRequestError

PauseMode = Literal["keep", "abort", "wait"]
"""What becomes of the sequences that are there: they stay as they are, end with reason "abort", or end by themselves first."""

SleepLevel = Literal[1, 2]
"""1 gives up KV and slots, 2 the weights too."""


def check_mode(mode: object) -> None:
    """Raises InvalidRequestError where `mode` is no `PauseMode`."""
    if mode not in get_args(PauseMode):
        raise InvalidRequestError(f"mode must be one of {', '.join(get_args(PauseMode))}, got {mode!r}.", field="mode", value=mode)


def check_level(level: object) -> None:
    """Raises InvalidRequestError where `level` is no `SleepLevel`."""
    if isinstance(level, bool) or level not in get_args(SleepLevel):
        raise InvalidRequestError(f"level must be 1 or 2, got {level!r}.", field="level", value=level)
