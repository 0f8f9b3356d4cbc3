"""All rules, in order of their ids."""

from __future__ import annotations

from xlaserve.buckets.lint import rules_calls, rules_graph, rules_index, rules_loops, rules_ops, rules_types
from xlaserve.buckets.lint.rule import Rule

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            value
            for module in (rules_calls, rules_graph, rules_index, rules_loops, rules_ops, rules_types)
            for value in vars(module).values()
            if isinstance(value, Rule)
        ),
        key=lambda rule: rule.id,
    )
)
"""N01 to N27."""
