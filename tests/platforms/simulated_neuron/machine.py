"""A machine that JAX and xlaserve take for a Trainium instance: the plugin, AWS's tools, and the sizes of engines that tests use there."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.platforms.fake_neuron import CHIP, write_tools
from tests.server.served import COMMAND, ROOT

FOLDER = Path(__file__).parent
SIZES: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 256,
    "context_buckets": (128,),
    "block_size": 128,
    "num_blocks": 9,
    "dtype": "float32",
}
"""float32 and the block size are given so that the CPU computes the same; prompts of more than 128 tokens take two chunks."""
GRAPHS = {"context-1x128-2", "generate-1-2", "generate-2-2", "seat", "copy", "blank"}
FLAGS = [f"--{name.replace('_', '-')}={value[0] if isinstance(value, tuple) else value}" for name, value in SIZES.items()]
_SECONDS = 300
_UNSET = ("JAX_PLATFORMS", "XLASERVE_PLATFORM", "XLASERVE_ARTIFACTS", "NEURON_CC_FLAGS", "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES")


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine; every process on it has its JAX to itself.

    Args:
        environment: of its processes.
        journal: what its compiler writes.
        compile_cache: the store of graphs.
    """

    environment: dict[str, str]
    journal: Path
    compile_cache: Path

    def xlaserve(self, *arguments: object) -> str:
        """Run a command that succeeds; what it prints."""
        return self._succeeds(*COMMAND, *map(str, arguments))

    def fails(self, *arguments: object, packages: Path) -> tuple[int, str]:
        """Run a command where the packages of a folder are installed too; its exit status and what it complains of."""
        path = f"{packages}{os.pathsep}{self.environment['PYTHONPATH']}"
        done = _run(self.environment | {"PYTHONPATH": path}, *COMMAND, *map(str, arguments))
        return done.returncode, done.stderr

    def ask(self, module: str, **question: Any) -> Any:
        """Run a module of this folder, which takes JSON and prints JSON."""
        return json.loads(
            self._succeeds(sys.executable, "-W", "error", str(FOLDER / f"{module}.py"), json.dumps(question)).splitlines()[-1]
        )

    def events(self) -> list[dict[str, Any]]:
        """What was compiled and loaded since this was last asked."""
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().splitlines()
        self.journal.unlink()
        return [json.loads(line) for line in lines]

    def _succeeds(self, *command: str) -> str:
        done = _run(self.environment, *command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def make_machine(folder: Path) -> Machine:
    """A machine that keeps its things in a folder. Tests that ask for it are skipped where there is no XLA:CPU as a plugin."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip(f"lammps-jax-pjrt-cpu has no wheel for {sys.platform} {platform.machine()}")
    for package in ("lammps_jax_pjrt_cpu", "pypjrt"):
        if importlib.util.find_spec(package) is None:
            pytest.fail(f"{package} is missing: pip install --no-deps -r {FOLDER.relative_to(ROOT) / 'requirements.txt'}")
    tools = folder / "bin"
    tools.mkdir()
    write_tools(tools, devices=[CHIP], compiler="NeuronX Compiler version 2.27.4747.0")
    journal, compile_cache = folder / "journal", folder / "compile_cache"
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    environment |= {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{FOLDER}{os.pathsep}{ROOT}",
        "SIMULATED_NEURON_JOURNAL": str(journal),
        "XLASERVE_COMPILE_CACHE": str(compile_cache),
    }
    return Machine(environment, journal, compile_cache)


def _run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
