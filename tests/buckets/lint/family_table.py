"""`python -m tests.buckets.lint.family_table` prints what the lint finds in the graphs of every supported family for every target."""

from __future__ import annotations

import sys

from tests.buckets.lint.test_families import ladder, neuron_spec
from tests.tooling.tiny_models import FAMILIES
from xlaserve.buckets.lint.finding import SEVERITIES
from xlaserve.buckets.lint.ladder_lint import lint_ladder
from xlaserve.platforms.neuron import NEURON
from xlaserve.platforms.neuron_targets import TARGETS


def main() -> int:
    """Print a row for each family and target; 1 where there is an error."""
    print(f"| family | target | graphs | {' | '.join(SEVERITIES)} | without a verdict |\n|---|---|---|{'---|' * len(SEVERITIES)}---|")
    failed = 0
    for family in FAMILIES:
        for report in lint_ladder(neuron_spec(family), ladder(), list(TARGETS.values()), NEURON.jax_name):
            counts = [report.count(severity) for severity in SEVERITIES]
            failed |= report.count("error") > 0
            cells = (family, report.target, len(report.graphs), *counts, len(report.unchecked))
            print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
