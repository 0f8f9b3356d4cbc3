"""Every kind of damage to an artifact directory, and of difference between it and this machine, with the one line that a start answers.

`python -m tests.buckets.damages` prints the table of docs/damages.md, which `test_damages.py` asserts.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax

from xlaserve.buckets.compiler import Compiler, collect
from xlaserve.buckets.graphs import GraphSpec
from xlaserve.buckets.keys import program_key
from xlaserve.buckets.ladder import BLANK, COPY, SEAT, Ladder, UpkeepBucket
from xlaserve.buckets.manifest import SCHEMA
from xlaserve.buckets.store import GraphStore
from xlaserve.errors import ArtifactError
from xlaserve.models.config import LayerAttention, ModelConfig, Rope

MODEL = ModelConfig(
    family="llama",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    layers=(LayerAttention(None, Rope(1e4)),),
    max_position=64,
    norm_eps=1e-5,
    activation="silu",
    tie_embeddings=True,
    query_scale=0.35,
)
SPEC = GraphSpec(MODEL, "float32", 3, 16, 1, "tiled", True, "sort")
MACHINE = {
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "jax-cuda13-plugin": "0.10.2",
    "xla_flags": "",
    "device_kind": "cpu",
    "platform_version": "cpu",
    "cpu_features": ["avx2", "fma"],
    "cores": "2",
}
"""Facts of a machine that tests can change; executables are loaded by the one that this is."""

Damage = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of damage or difference.

    Args:
        damage: what to do to a directory that is whole.
        program, machine: fields in which this program and this machine differ from those that the directory was made for.
        graph: what to load from it.
    """

    damage: Damage = lambda _directory: None
    program: dict[str, Any] = field(default_factory=dict[str, Any])
    machine: dict[str, Any] = field(default_factory=dict[str, Any])
    graph: UpkeepBucket = COPY


def make(directory: Path) -> None:
    """A directory that is whole: two small graphs in both forms."""
    collect(_compiler(_store(directory, Case()), None, (COPY, SEAT)), lambda _graph, _done: None)


def answer(case: Case, whole: Path, scratch: Path) -> tuple[str, str, str]:
    """What a start says to a case.

    Args:
        case: what is wrong.
        whole: from `make`.
        scratch: an empty directory to work in.

    Returns:
        The line for the directory; that for the graph, which begins with what was done; what `--artifacts-only` answers. Paths, digests
        and numbers of bytes are shortened, and so is what JAX and the platform say.
    """
    directory = scratch / "DIR"
    shutil.copytree(whole, directory)
    case.damage(directory)
    artifacts, cache = _store(directory, case), _store(scratch / "cache", case)
    compiler = Compiler(SPEC, "cpu", jax.devices("cpu")[:1], cache, artifacts=artifacts, threads=1)
    verdict = compiler.verdicts[directory]
    [graph] = collect(compiler.start(cast(Ladder, SimpleNamespace(graphs=(case.graph,)))), lambda _graph, _done: None).values()
    shutil.rmtree(scratch / "cache", ignore_errors=True)
    try:
        collect(_compiler(cache, artifacts, (case.graph,), only=True), lambda _graph, _done: None)
        only = "starts"
    except ArtifactError as error:
        only = str(error).partition("forbids that: ")[2]
    [machine] = [path.name.split(".")[1] for path in whole.glob("copy.*.xla")]
    told = f"{verdict}", f"{graph.source}{f' ({graph.note})' if graph.note else ''}", only
    first, second, third = (_shorten(line, directory, scratch / "cache", machine) for line in told)
    return first, second, third


def _shorten(line: str, directory: Path, cache: Path, machine: str) -> str:
    line = line.replace(str(directory), "DIR").replace(f"; {cache}: nothing is kept there yet", "").replace(f".{machine}.", ".MACHINE.")
    line = line.replace(jax.__version__, "VERSION") if "none that JAX" in line else line
    line = re.sub(r"(VERSION reads|does not load it): [^()]*(\(actual [^()]*\))?", r"\1: ...", line)
    line = re.sub(r"has [0-9,]+ bytes, and [0-9,]+ were", "has N bytes, and M were", line)
    return re.sub(r"\([0-9]+ there, [0-9]+ here\)", "(N there, M here)", line).removesuffix(".") if not line.endswith("...") else line


def _compiler(cache: GraphStore, artifacts: GraphStore | None, graphs: tuple[UpkeepBucket, ...], *, only: bool = False) -> Any:
    compiler = Compiler(SPEC, "cpu", jax.devices("cpu")[:1], cache, artifacts=artifacts, only=only, threads=1)
    return compiler.start(cast(Ladder, SimpleNamespace(graphs=graphs)))


def _store(directory: Path, case: Case) -> GraphStore:
    program = program_key(SPEC, "cpu") | {"source": "0011223344556677"}
    return GraphStore(directory, program | case.program, MACHINE | case.machine, dict)


def executable(change: Callable[[bytes], bytes]) -> Damage:
    """The file of the graph's executable gets other content."""
    return lambda directory: _rewrite(next(directory.glob("copy.*.xla")), change)


def both(change: Callable[[bytes], bytes]) -> Damage:
    """The StableHLO gets other content, and the executable is gone."""

    def damage(directory: Path) -> None:
        next(directory.glob("copy.*.xla")).unlink()
        _rewrite(directory / "copy.stablehlo", change)

    return damage


def recorded(name: str, content: Callable[[Path], bytes]) -> Damage:
    """A file has other content, and the manifest says so too: whoever made it could write both."""

    def damage(directory: Path) -> None:
        path = next(directory.glob(name))
        content_now = content(directory)
        path.write_bytes(content_now)
        digest = {"sha256": hashlib.sha256(content_now).hexdigest(), "size": len(content_now)}
        manifest = json.loads((directory / "manifest.json").read_bytes())
        graph = manifest["graphs"]["copy"]
        if path.suffix == ".xla":
            next(iter(graph["executables"].values()))["file"] = digest
        else:
            graph["stablehlo"], graph["executables"] = digest, {}
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return damage


def manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The manifest's fields are others."""

    def damage(directory: Path) -> None:
        content = json.loads((directory / "manifest.json").read_bytes())
        change(content)
        (directory / "manifest.json").write_text(json.dumps(content))

    return damage


def text(change: Callable[[bytes], bytes]) -> Damage:
    """The manifest's bytes are others."""
    return lambda directory: _rewrite(directory / "manifest.json", change)


def folder(name: str) -> Damage:
    """A directory lies in the place of a file: what cannot be read, whoever reads."""

    def damage(directory: Path) -> None:
        path = next(directory.glob(name))
        path.unlink()
        path.mkdir()

    return damage


def link(name: str, target: str) -> Damage:
    """A file is a link to somewhere else."""

    def damage(directory: Path) -> None:
        path = next(directory.glob(name))
        path.unlink()
        path.symlink_to(target)

    return damage


def moved(directory: Path) -> None:
    """The executable lies elsewhere, and a link leads there."""
    path = next(directory.glob("copy.*.xla"))
    elsewhere = directory.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def killed(directory: Path) -> None:
    """A process was killed while it saved: unfinished files, a lock that nobody holds, no manifest entry."""
    (directory / ".copy.stablehlo.abcd1234").write_bytes(b"half")
    (directory / ".manifest.json.abcd1234").write_bytes(b"{")
    (directory / "locks" / "copy").touch()


def unlocked(directory: Path) -> None:
    """Locks cannot be taken, as where a directory can only be read."""
    shutil.rmtree(directory / "locks")
    (directory / "locks").write_bytes(b"")


def renamed(name: str) -> Damage:
    """The manifest lists the graph under a name that leads elsewhere."""
    return manifest(lambda m: m["graphs"].update({name: m["graphs"].pop("copy")}))


class _Trap:
    """Unpickled, it ends the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (66,)


def _other(name: str) -> Callable[[Path], bytes]:
    return lambda directory: next(directory.glob(name)).read_bytes()


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _machine(change: Callable[[dict[str, Any]], object]) -> Damage:
    return manifest(lambda m: change(next(iter(m["machines"].values()))))


CASES: dict[str, Case] = {
    "whole": Case(),
    # Executables.
    "executable: cut short": Case(executable(lambda content: content[:-1])),
    "executable: empty": Case(executable(lambda _content: b"")),
    "executable: one bit changed": Case(executable(_flip)),
    "executable: missing": Case(lambda directory: next(directory.glob("copy.*.xla")).unlink()),
    "executable: a directory": Case(folder("copy.*.xla")),
    "executable: another graph's file": Case(
        lambda directory: _rewrite(next(directory.glob("copy.*.xla")), lambda _: _other("seat.*.xla")(directory))
    ),
    "executable: another graph's, recorded": Case(recorded("copy.*.xla", _other("seat.*.xla"))),
    "executable: a pickle": Case(executable(lambda _content: pickle.dumps(_Trap()))),
    "executable: a pickle, recorded": Case(recorded("copy.*.xla", lambda _directory: pickle.dumps(_Trap()))),
    "executable: text, recorded": Case(recorded("copy.*.xla", lambda _directory: b"#!/bin/sh\n")),
    "executable: a link to another file": Case(link("copy.*.xla", "/etc/hostname")),
    "executable: a link to nowhere": Case(link("copy.*.xla", "nowhere")),
    "executable: moved, with a link": Case(moved),
    # StableHLO, where there is no executable any more.
    "StableHLO: cut short": Case(both(lambda content: content[:-1])),
    "StableHLO: one bit changed": Case(both(_flip)),
    "StableHLO: another graph's, recorded": Case(recorded("copy.stablehlo", _other("seat.stablehlo"))),
    "StableHLO: a pickle, recorded": Case(recorded("copy.stablehlo", lambda _directory: pickle.dumps(_Trap()))),
    "StableHLO: empty, recorded": Case(recorded("copy.stablehlo", lambda _directory: b"")),
    "both forms missing": Case(lambda directory: [path.unlink() for path in directory.glob("copy.*")] and None),
    "graph not in it": Case(graph=BLANK),
    # The manifest.
    "manifest: no JSON": Case(text(lambda content: content[: len(content) // 2])),
    "manifest: empty": Case(text(lambda _content: b"")),
    "manifest: a list": Case(text(lambda _content: b"[]")),
    "manifest: a pickle": Case(text(lambda _content: pickle.dumps(_Trap()))),
    "manifest: missing": Case(lambda directory: (directory / "manifest.json").unlink()),
    "manifest: a directory": Case(folder("manifest.json")),
    "manifest: older schema": Case(manifest(lambda m: m.update(schema=SCHEMA - 1))),
    "manifest: newer schema": Case(manifest(lambda m: m.update(schema=99))),
    "manifest: no schema": Case(manifest(lambda m: m.pop("schema"))),
    "manifest: a field is missing": Case(manifest(lambda m: m.pop("graphs"))),
    "manifest: an unknown field": Case(manifest(lambda m: m.update(more=1))),
    "manifest: a field of another type": Case(manifest(lambda m: m.update(graphs=7))),
    "manifest: a size below zero": Case(manifest(lambda m: m["graphs"]["copy"]["stablehlo"].update(size=-1))),
    "manifest: a sha256 that is none": Case(manifest(lambda m: m["graphs"]["copy"]["stablehlo"].update(sha256="00"))),
    "manifest: a path out of the directory": Case(renamed("../copy")),
    "manifest: an absolute path": Case(renamed("/etc/passwd")),
    "manifest: a machine's name is a path": Case(
        manifest(lambda m: m["graphs"]["copy"].update(executables={"../../x": next(iter(m["graphs"]["copy"]["executables"].values()))}))
    ),
    # The store.
    "store: its writer was killed": Case(killed),
    "store: no locks can be taken": Case(unlocked),
    # Another program.
    "program: another model config": Case(program={"model": asdict(replace(MODEL, hidden_size=32))}),
    "program: another dtype": Case(program={"dtype": "bfloat16"}),
    "program: another block size": Case(program={"block_size": 32}),
    "program: another number of blocks": Case(program={"num_blocks": 9}),
    "program: another max_num_seqs": Case(program={"max_num_seqs": 8}),
    "program: another mesh": Case(program={"mesh": {"tp": 4}}),
    "program: another KV spec": Case(program={"kv": {"layers": 2, "shape": [3, 1, 16, 8], "dtype": "float32"}}),
    "program: another platform": Case(program={"platform": "neuron"}),
    "program: another attention": Case(program={"attention": "gather"}),
    "program: with native kernels": Case(program={"kernels": "cpu-1"}),
    "program: another precision": Case(program={"jax_config": {"jax_default_matmul_precision": "highest", "jax_enable_x64": False}}),
    "program: another source": Case(program={"source": "8899aabbccddeeff"}),
    # Another machine.
    "machine: another jax": Case(machine={"jax": "0.12.0"}),
    "machine: another jaxlib": Case(machine={"jaxlib": "0.12.0"}),
    "machine: another flax": Case(machine={"flax": "0.13.0"}),
    "machine: another plugin": Case(machine={"jax-cuda13-plugin": "0.12.0"}),
    "machine: another device kind": Case(machine={"device_kind": "NVIDIA H200"}),
    "machine: another driver or client": Case(machine={"platform_version": "PJRT C API 12"}),
    "machine: a CPU feature is missing here": Case(machine={"cpu_features": ["avx2"]}),
    "machine: a CPU feature is only here": Case(machine={"cpu_features": ["avx2", "avx512f", "fma"]}),
    "machine: another number of cores": Case(machine={"cores": "64"}),
    "machine: other flags": Case(machine={"xla_flags": "--xla_cpu_enable_fast_math=true"}),
    "machine: none recorded": Case(manifest(lambda m: (m.update(machines={}), [g.update(executables={}) for g in m["graphs"].values()]))),
    "machine: what its maker could not know": Case(_machine(lambda facts: facts.update(platform_version=None))),
}
"""By name."""


def row(name: str, cells: tuple[str, str, str]) -> str:
    """A case and what is answered, as a row of the table."""
    return f"| {' | '.join((name, *cells))} |"


def main() -> int:
    """Print the table as Markdown."""
    print("| what is wrong | the directory | the graph | with `--artifacts-only` |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder_name:
        root = Path(folder_name)
        make(root / "whole")
        for at, (name, case) in enumerate(CASES.items()):
            (root / str(at)).mkdir()
            cells = answer(case, root / "whole", root / str(at))
            print(row(name, cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
