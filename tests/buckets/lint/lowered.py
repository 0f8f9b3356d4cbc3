"""Lowers small functions for Neuron and lints them in both forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from xlaserve.buckets.lint.hlo import hlo_text, read_hlo
from xlaserve.buckets.lint.linter import Linter
from xlaserve.buckets.lint.ranges import Contract
from xlaserve.buckets.lint.report import Report
from xlaserve.buckets.lint.rule import Facts, Subject
from xlaserve.buckets.lint.stablehlo import parse_stablehlo, read_stablehlo
from xlaserve.platforms.neuron_targets import TARGETS

FACTS: dict[str, Any] = {"contract": {}, "donated": (), "jax_version": "0.10.0"}


def facts(contract: Contract | None = None, **known: Any) -> Facts:
    """Facts of a graph that needs none but these."""
    return Facts(**{**FACTS, "contract": contract or {}, **known})


def subjects(module: Any, known: Facts | None) -> list[Subject]:
    """Both forms of a StableHLO module."""
    return [Subject(read_stablehlo(module, "graph"), known), Subject(read_hlo(hlo_text(module), "graph"), known)]


def lower(function: Callable[..., Any], *arguments: Any, known: Facts | None = None, donate: tuple[int, ...] = ()) -> list[Subject]:
    """A function, lowered for Neuron, in both forms."""
    traced = jax.jit(function, donate_argnums=donate, keep_unused=True).trace(*arguments)
    return subjects(traced.lower(lowering_platforms=("neuron",)).compiler_ir("stablehlo"), known)


def stablehlo(text: str, known: Facts | None = None) -> list[Subject]:
    """A StableHLO module's text, in that form only."""
    return [Subject(read_stablehlo(parse_stablehlo(text), "graph"), known)]


def hlo(text: str, known: Facts | None = None) -> list[Subject]:
    """An HLO module's text."""
    return [Subject(read_hlo(text, "graph"), known)]


def lint(subjects: list[Subject], target: str = "trn2") -> Report:
    """What the lint says of a graph."""
    linter = Linter(TARGETS[target])
    for subject in subjects:
        linter.add(subject)
    return linter.report()


def said(report: Report, rule: str) -> dict[str, tuple[str, ...]]:
    """Severity -> the forms in which a rule is broken."""
    found: dict[str, tuple[str, ...]] = {}
    for finding in report.findings:
        if finding.rule == rule:
            found[finding.severity] = (*found.get(finding.severity, ()), *finding.forms)
    return found
