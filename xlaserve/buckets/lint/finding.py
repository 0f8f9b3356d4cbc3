"""What the lint finds: a rule that is broken, and where; or a rule that could not be checked, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xlaserve.buckets.lint.module import Form, Op, Place

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule's word on one place of one module.

    Args:
        message: what is wrong, and what to do.
        op: the operation at fault; None where it is the module.
        severity: how bad.
    """

    message: str
    op: Op | None = None
    severity: Severity = "error"


@dataclass(frozen=True, slots=True)
class NotChecked:
    """A rule says that this module does not hold what it needs for a verdict."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong in one place, in however many graphs.

    Args:
        rule: its id, "N05".
        severity: how bad.
        message: what is wrong, and what to do.
        op: the operation and its types; empty where it is the whole graph.
        place: where it comes from.
        source: what the rule rests on.
        graphs: names of the graphs that have it.
        forms: in which forms it shows.
        count: operations in all of them.
    """

    rule: str
    severity: Severity
    message: str
    op: str
    place: Place
    source: str
    graphs: tuple[str, ...]
    forms: tuple[Form, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A rule that has no verdict for some graphs.

    Args:
        rule: its id.
        reason: what is missing.
        graphs: names of the graphs.
    """

    rule: str
    reason: str
    graphs: tuple[str, ...]
