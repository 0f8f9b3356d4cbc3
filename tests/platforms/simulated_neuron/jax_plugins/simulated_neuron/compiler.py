"""Stands for neuronx-cc: refuses a module that breaks a rule of the lint, and gives the others in a form that XLA:CPU compiles.

Where the variable `SIMULATED_NEURON_JOURNAL` names a file, each module and each executable that is loaded is a line of JSON there.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

from jax.extend.mlir import ir, serialize_portable_artifact
from jax_plugins.simulated_neuron.custom_calls import implement

from xlaserve.buckets.lint.hlo import hlo_text, read_hlo
from xlaserve.buckets.lint.linter import Linter
from xlaserve.buckets.lint.rule import Subject
from xlaserve.buckets.lint.stablehlo import parse_stablehlo, read_stablehlo
from xlaserve.buckets.lint.target import TARGETS

JOURNAL = "SIMULATED_NEURON_JOURNAL"
_MAGIC = b"ML\xefRStableHLO_v"


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
        linter = Linter(TARGETS["trn2"])
        for form in (stablehlo, read_hlo(hlo_text(module), name)):
            linter.add(Subject(form))
        report = linter.report()
        errors = [f"{found.rule} {found.message} ({found.op} at {found.place})" for found in report.findings if found.severity == "error"]
        calls = implement(module)
        record(
            event="compile",
            module=name,
            errors=errors,
            custom_calls=calls,
            donated=len(stablehlo.aliases),
            flags=os.environ.get("NEURON_CC_FLAGS", ""),
        )
        if errors:
            raise ValueError("; ".join(errors))
        bytecode = io.BytesIO()
        module.operation.write_bytecode(bytecode)
    version = portable[portable.index(b"StableHLO_v") + len(b"StableHLO_v") :].partition(b"\0")[0].decode()
    return serialize_portable_artifact(bytecode.getvalue(), version, True)


def record(**line: Any) -> None:
    """Writes a line of the journal, at once and whole: several processes may share it."""
    if path := os.environ.get(JOURNAL):
        with open(path, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
