"""Runs every rule over modules, and puts equal findings of many graphs and forms together."""

from __future__ import annotations

from dataclasses import dataclass, field

from xlaserve.buckets.lint.finding import SEVERITIES, Finding, Hit, Severity, Unchecked
from xlaserve.buckets.lint.module import Form, Op, Place
from xlaserve.buckets.lint.report import Report
from xlaserve.buckets.lint.rule import Subject
from xlaserve.buckets.lint.rules import RULES
from xlaserve.platforms.neuron_targets import Target

_Key = tuple[str, Severity, str, str]


@dataclass(slots=True)
class _Group:
    place: Place
    op: str
    source: str
    graphs: dict[str, None] = field(default_factory=dict[str, None])
    counts: dict[Form, int] = field(default_factory=dict[Form, int])


class Linter:
    """Lints for one target; add graphs, then take the report.

    Args:
        target: the chip.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._graphs: dict[str, None] = {}
        self._groups: dict[_Key, _Group] = {}
        self._unchecked: dict[tuple[str, str], dict[str, None]] = {}

    def add(self, subject: Subject) -> None:
        """Lint one graph in one form; its other form is another subject of the same name."""
        module = subject.module
        self._graphs[module.name] = None
        for rule in RULES:
            for said in rule.check(subject, self._target):
                if not isinstance(said, Hit):
                    self._unchecked.setdefault((rule.id, said.reason), {})[module.name] = None
                    continue
                place = module.place(said.op) if said.op else Place()
                key = (rule.id, said.severity, said.message, place.source or place.op_name)
                group = self._groups.setdefault(key, _Group(place, _describe(said.op), rule.source))
                group.graphs[module.name] = None
                group.counts[module.form] = group.counts.get(module.form, 0) + 1

    def report(self) -> Report:
        """Everything found so far, errors first."""
        findings = [
            Finding(
                rule=rule,
                severity=severity,
                message=message,
                op=group.op,
                place=group.place,
                source=group.source,
                graphs=tuple(group.graphs),
                forms=tuple(group.counts),
                count=max(group.counts.values()),
            )
            for (rule, severity, message, _), group in self._groups.items()
        ]
        findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
        unchecked = [Unchecked(rule, reason, tuple(graphs)) for (rule, reason), graphs in sorted(self._unchecked.items())]
        return Report(self._target.name, tuple(self._graphs), tuple(findings), tuple(unchecked))


def _describe(op: Op | None) -> str:
    if op is None:
        return ""
    operands = ", ".join(str(value.type) for value in op.operands)
    return f"{op.name}({operands}) -> {', '.join(str(value.type) for value in op.results)}"
