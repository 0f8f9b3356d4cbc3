"""Lints modules that lie in files: StableHLO as text, bytecode, portable artifact or in an artifact directory, HLO as text or proto."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlaserve.buckets.lint.hlo import hlo_text, proto_text, read_hlo
from xlaserve.buckets.lint.linter import Linter
from xlaserve.buckets.lint.module import Module
from xlaserve.buckets.lint.one_device import one_device
from xlaserve.buckets.lint.report import Report
from xlaserve.buckets.lint.rule import Subject
from xlaserve.buckets.lint.stablehlo import parse_stablehlo, read_stablehlo
from xlaserve.buckets.portable import read_exported
from xlaserve.errors import ArtifactError
from xlaserve.models.source import CONFIG_FILE
from xlaserve.platforms.neuron_targets import Target

STABLEHLO = (".mlir", ".mlirbc")
EXPORTED = (".stablehlo",)
HLO_TEXT = (".hlo", ".txt")
HLO_PROTO = (".pb",)
ENDINGS = (*STABLEHLO, *EXPORTED, *HLO_TEXT, *HLO_PROTO)


def module_files(path: Path) -> list[Path]:
    """The module files in a directory, or the file itself where it is one; none where it is neither, or a model's directory."""
    if (path / CONFIG_FILE).is_file():
        return []
    if path.is_file():
        return [path] if path.suffix in ENDINGS else []
    return sorted(file for file in path.iterdir() if file.suffix in ENDINGS) if path.is_dir() else []


def lint_files(files: Sequence[Path], target: Target) -> Report:
    """Lint each file; StableHLO in both forms.

    Args:
        files: from `module_files`.
        target: the chip.

    Raises:
        ArtifactError: a file cannot be read as what its ending says.
    """
    linter = Linter(target)
    for file in files:
        for module in _read(file):
            linter.add(Subject(module))
    return linter.report()


def _read(file: Path) -> list[Module]:
    try:
        if file.suffix in HLO_TEXT:
            return [read_hlo(file.read_text(), file.name)]
        if file.suffix in HLO_PROTO:
            return [read_hlo(proto_text(file.read_bytes()), file.name)]
        content = file.read_bytes()
        module = one_device(parse_stablehlo(read_exported(content).mlir_module_serialized if file.suffix in EXPORTED else content))
        return [read_stablehlo(module, file.name), read_hlo(hlo_text(module), file.name)]
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{file}: is not text: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from error
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read: {error.strerror}") from error
