"""`Result`: what a benchmark found, and everything that it depends on, as one JSON object. docs/benchmarks.md lists its keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xlaserve.bench.machine import load_average, machine, versions
from xlaserve.bench.spread import finite
from xlaserve.errors import ConfigError

SCHEMA = 1
_SECRET = ("api_key",)
_QUIET = 0.5
"""Load average below which a machine is left alone."""
_HIDDEN = ("command", "benchmark")


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found.

    Args:
        content: the JSON object.
        text: the same for a person.
        failures: how many of the things that were measured failed.
    """

    content: dict[str, Any]
    text: str
    failures: int = 0

    def write(self, file: Path) -> None:
        """Write the JSON object.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            file.write_text(json.dumps(self.content, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise ConfigError(f"--output-json {file} cannot be written: {error}.") from error


class Recorder:
    """Takes down under which conditions a benchmark runs, from when it begins.

    Args:
        benchmark: its name.
        arguments: all its flags, those that were not given included.
    """

    def __init__(self, benchmark: str, arguments: Mapping[str, Any]) -> None:
        self._benchmark = benchmark
        self._arguments = {
            name: "***" if name in _SECRET and value is not None else "inf" if value == math.inf else plain(value)
            for name, value in sorted(arguments.items())
            if name not in _HIDDEN
        }
        self._began = datetime.now(UTC)
        self._load_before = load_average()

    def result(
        self,
        *,
        subject: Mapping[str, Any],
        repeats: int,
        metrics: Mapping[str, Any],
        text: str,
        failures: int = 0,
        warnings: Sequence[str] = (),
        **more: Any,
    ) -> Result:
        """The result, as of now.

        Args:
            subject: what was measured: model, dtype, platform, device and the like.
            repeats: how often each thing was measured.
            metrics: the figures.
            text: the same for a person.
            failures: as `Result` has it.
            warnings: reasons not to take the figures for what they seem.
            more: what else belongs beside the metrics.
        """
        load_after = load_average()
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "benchmark": self._benchmark,
            "date": self._began.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self._began).total_seconds(), 3),
            "versions": versions(),
            "machine": machine(),
            "load_average": {"before": self._load_before, "after": load_after},
            "arguments": self._arguments,
            "subject": plain(subject),
            "repeats": repeats,
            "warnings": [*warnings, *_busy(self._load_before)],
            "metrics": plain(metrics),
            **plain(more),
        }
        told = "".join(f"WARNING: {warning}\n" for warning in content["warnings"])
        return Result(content, f"{text}\n\n{told}{_footer(content)}", failures)


def _busy(load: Sequence[float] | None) -> list[str]:
    """Whether something else had the machine when the benchmark began."""
    if load is None or load[0] < _QUIET:
        return []
    return [f"the machine was busy before this began (load average {load[0]}): these are no figures to compare with."]


def _footer(content: dict[str, Any]) -> str:
    """One line of what every figure above depends on."""
    found, before, after = content["machine"], content["load_average"]["before"], content["load_average"]["after"]
    kernels = content["subject"].get("kernels")
    packages = [f"{name} {version}" for name, version in content["versions"].items() if version is not None]
    load = f"load average {before[0]} before, {after[0]} after" if before and after else "load average unknown"
    return (
        f"{', '.join(packages)}{f', kernels {kernels}' if kernels else ''}\n"
        f"{found['cpu']}, {found['usable_cores']} of {found['cores']} cores; {load}; repeats {content['repeats']}"
    )


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that JSON lacks are null, what it does not know is its text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return str(value)
