"""The lint's answer: findings of many graphs put together, for a person or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xlaserve.buckets.lint.finding import SEVERITIES, Finding, Severity, Unchecked
from xlaserve.buckets.lint.rules import RULES

_GRAPHS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What linting some graphs for one target found.

    Args:
        target: the chip's name.
        graphs: names of the graphs, each linted in every form that it has.
        findings: what is wrong, errors first.
        unchecked: rules without a verdict.
    """

    target: str
    graphs: tuple[str, ...]
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """For a person."""
        for finding in self.findings:
            yield f"{finding.severity:<7} {finding.rule}  {finding.message}"
            if finding.op:
                yield f"             at {finding.place}: {finding.op}"
            yield f"             in {_some(finding.graphs)}, {_times(finding)}; rule from: {finding.source}"
        for unchecked in self.unchecked:
            yield f"unknown {unchecked.rule}  {unchecked.reason}; {_some(unchecked.graphs)}"
        for rule in RULES:
            if rule.limit:
                yield f"limit   {rule.id}  {rule.limit}"
        counts = Counter(finding.severity for finding in self.findings)
        numbers = ", ".join(f"{counts[severity]} {severity}{'s' if severity != 'info' else ''}" for severity in SEVERITIES)
        yield f"{self.target}: {len(self.graphs)} graphs, {len(RULES)} rules: {numbers}, {len(self.unchecked)} without a verdict"

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "target": self.target,
            "graphs": list(self.graphs),
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "findings": [
                {
                    "rule": finding.rule,
                    "severity": finding.severity,
                    "message": finding.message,
                    "op": finding.op,
                    "op_name": finding.place.op_name,
                    "place": finding.place.source,
                    "source": finding.source,
                    "graphs": list(finding.graphs),
                    "forms": list(finding.forms),
                    "count": finding.count,
                }
                for finding in self.findings
            ],
            "unchecked": [{"rule": u.rule, "reason": u.reason, "graphs": list(u.graphs)} for u in self.unchecked],
            "limits": {rule.id: rule.limit for rule in RULES if rule.limit},
        }


def _some(graphs: tuple[str, ...]) -> str:
    more = f" and {len(graphs) - _GRAPHS_NAMED} more" if len(graphs) > _GRAPHS_NAMED else ""
    return ", ".join(graphs[:_GRAPHS_NAMED]) + more


def _times(finding: Finding) -> str:
    forms = " and ".join(finding.forms)
    return f"{finding.count} times in {forms}" if finding.count > 1 else f"once in {forms}"
