"""Stands for neuronx-cc: refuses a module that breaks a rule of the lint, and gives the others in a form that XLA:CPU compiles.

Where the variable `SIMULATED_NEURON_JOURNAL` names a file, each module and each executable that is loaded is a line of JSON there.
"""

from __future__ import annotations

import io
import json
import os
import re
from typing import Any

from jax.extend.mlir import ir, serialize_portable_artifact

from xlaserve.buckets.lint.hlo import hlo_text, read_hlo
from xlaserve.buckets.lint.linter import Linter
from xlaserve.buckets.lint.module import Module
from xlaserve.buckets.lint.rule import Subject
from xlaserve.buckets.lint.stablehlo import parse_stablehlo, read_stablehlo
from xlaserve.platforms.neuron_targets import TARGETS

from .custom_calls import implement

JOURNAL = "SIMULATED_NEURON_JOURNAL"
_VERSION = re.compile(rb"StableHLO_v([\d.]+)")
"""In the first bytes of a portable artifact."""


def compile_instead(portable: bytes) -> bytes:
    """The program to compile in place of one that was made for Neuron.

    Args:
        portable: StableHLO as JAX sends it to plugins.

    Raises:
        ValueError: a rule of the lint is broken; the text says which and where.
    """
    module = parse_stablehlo(portable)
    with module.context:
        name = ir.StringAttr(module.operation.attributes["sym_name"]).value
        stablehlo = read_stablehlo(module, name)
        errors = _lint(stablehlo, read_hlo(hlo_text(module), name))
        calls = implement(module)
        record(
            event="compile",
            module=name,
            errors=errors,
            custom_calls=calls,
            donated=len(stablehlo.aliases),
            cores=ir.IntegerAttr(module.operation.attributes["mhlo.num_partitions"]).value,
            flags=os.environ.get("NEURON_CC_FLAGS", ""),
        )
        if errors:
            raise ValueError("; ".join(errors))
        bytecode = io.BytesIO()
        module.operation.write_bytecode(bytecode)
    version = _VERSION.search(portable)
    assert version is not None
    return serialize_portable_artifact(bytecode.getvalue(), version[1].decode(), True)


def _lint(*forms: Module) -> list[str]:
    """The errors that the lint finds in the forms of a module."""
    linter = Linter(TARGETS["trn2"])
    for form in forms:
        linter.add(Subject(form))
    found = (finding for finding in linter.report().findings if finding.severity == "error")
    return [f"{finding.rule} {finding.message} ({finding.op} at {finding.place})" for finding in found]


def record(**line: Any) -> None:
    """Writes a line of the journal, at once and whole: several processes may share it."""
    if path := os.environ.get(JOURNAL):
        with open(path, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
