"""The house's rules: floors import only floors below, and what decides on the host knows no JAX."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import xlaserve

ROOT = Path(xlaserve.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
ALLOWED: dict[str, set[str]] = {
    "kernels": set(),
    "platforms": {"kernels"},
    "models": {"kernels", "platforms"},
    "paged": {"kernels", "models", "platforms"},
    "sampling": {"models", "platforms"},
    "buckets": {"kernels", "paged", "sampling", "models", "platforms"},
    "engine": {"buckets", "paged", "sampling", "models", "platforms"},
    "server": {"engine", "buckets", "paged", "sampling", "models", "platforms"},
    "bench": {"kernels", "engine", "buckets", "paged", "sampling", "models", "platforms"},
    "commands": {"kernels", "bench", "server", "engine", "buckets", "paged", "sampling", "models", "platforms"},
}
"""Package -> packages that it may import besides itself and `xlaserve.errors`."""

HOST_ONLY = (
    "engine.scheduler",
    "engine.decision",
    "engine.beam_group",
    "sampling.beam_search",
    "engine.sequence",
    "engine.batch",
    "engine.stop",
    "engine.outputs",
    "engine.config",
    "engine.messages",
    "engine.calls",
    "engine.modes",
    "engine.trace",
    "engine.report",
    "engine.graph_table",
    "engine.front_end",
    "engine.engine_process",
    "engine.engine_main",
    "server.lifecycle",
    "bench.serve",
    "bench.serve_metrics",
    "bench.server_process",
    "bench.workload",
    "bench.graph_work",
    "bench.graph_batch",
    "bench.result",
    "commands.bench_flags",
    "paged.block_pool",
    "paged.kv_events",
    "engine.kv_publisher",
    "paged.block_tables",
    "buckets.ladder",
    "buckets.layout",
    "buckets.store",
    "buckets.manifest",
    "buckets.directories",
    "sampling.params",
    "models.config",
    "models.registry",
    "models.checkpoint",
    "platforms.registry",
    "cli",
)
"""Modules that decide without a device."""


def imports(path: Path) -> set[str]:
    """Every xlaserve module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "xlaserve"}


def floor(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("package", ALLOWED)
def test_a_floor_imports_only_floors_below(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 1
    for path in paths:
        for name in imports(path):
            target = floor(name)
            if target in ("errors", "__version__", package):
                continue
            assert target in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"


def test_every_package_has_its_floor() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ALLOWED)


def test_errors_import_nothing() -> None:
    assert not imports(ROOT / "errors.py")


def test_there_are_no_circles() -> None:
    """Modules can be put in an order in which each imports only earlier ones (imports inside functions and for types left out)."""
    names = {".".join(("xlaserve", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        targets = {t for node in top for alias in node.names for t in (f"{node.module}.{alias.name}", str(node.module)) if t in names}
        graph[name] = targets - {"xlaserve"}
    while free := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in free:
            del graph[name]
    assert not graph, f"in a circle: {sorted(graph)}"


@pytest.mark.parametrize("module", HOST_ONLY)
def test_host_modules_know_no_jax(module: str) -> None:
    code = f"import sys, xlaserve.{module}; bad = {{'jax', 'jaxlib', 'flax', 'torch'}} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT.parent)


def test_every_module_says_what_it_is_for() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_public_names_exist() -> None:
    for name in xlaserve.__all__:
        assert getattr(xlaserve, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = xlaserve.no_such_name  # type: ignore[attr-defined]
