"""List, show, verify and remove compiled artifacts: directories that `compile -o` made, and those of the compile cache.

DIR is a directory, or the name of one in the compile cache. `verify` compares every file with the sha256 in the manifest and exits
with 1 where one differs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlaserve.errors import ArtifactError

if TYPE_CHECKING:
    from xlaserve.buckets.manifest import Manifest

SUMMARY = "list, show, verify or remove compiled artifacts"
_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to do and with which directories."""
    parser.add_argument("--compile-cache", metavar="DIR", help="the compile cache to look in")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("ls", help="one line for each directory of the compile cache")
    for name, text in (
        ("show", "what a directory was made for, and its graphs"),
        ("verify", "compare every file with its sha256"),
        ("rm", "remove directories"),
    ):
        action = actions.add_parser(name, help=text)
        # Without any, `verify` takes all of the cache; the others have to be told.
        action.add_argument("directories", nargs="*" if name == "verify" else "+", metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Does it, directory by directory; 1 where something is damaged."""
    from xlaserve.buckets.directories import directories
    from xlaserve.buckets.store import default_root

    root = Path(args.compile_cache).expanduser() if args.compile_cache else default_root()
    if args.action == "ls":
        return _list(root)
    named = [_find(name, root) for name in args.directories] or directories(root)
    return max([_ACTIONS[args.action](directory) for directory in named], default=0)


def _find(name: str, root: Path) -> Path:
    directory = Path(name).expanduser()
    return directory if directory.is_dir() or "/" in name else root / name


def _list(root: Path) -> int:
    from xlaserve.buckets.directories import directories, load, recorded_files

    print(f"compile cache {root}")
    for directory in directories(root):
        try:
            manifest = load(directory)
        except ArtifactError as error:
            print(f"  {directory.name}  damaged: {error}")
            continue
        size = sum(record.size for record in recorded_files(manifest).values()) / _MIB
        kinds = ", ".join(sorted({str(machine.get("device_kind")) for machine in manifest.machines.values()})) or "StableHLO only"
        platform = manifest.program.get("platform")
        print(f"  {directory.name}  {platform} ({kinds})  {len(manifest.graphs)} graphs  {size:,.1f} MiB")
    return 0


def _show(directory: Path) -> int:
    from xlaserve.buckets.directories import load, reports, tuning

    manifest = load(directory)
    print(directory)
    _table("about", manifest.about)
    _table("program", {name: value for name, value in manifest.program.items() if name != "model"})
    for machine, facts in sorted(manifest.machines.items()):
        _table(f"machine {machine}", facts)
    _graphs(manifest)
    if manifest.tuning is not None:
        print(f"tuning: {len(tuning(directory)):,} kernels as they were measured")
    for target, report in reports(directory).items():
        print(f"lint {target}: {lint_line(report)}")
    return 0


def lint_line(report: Mapping[str, Any]) -> str:
    """A lint's report as one line: whether graphs are fit for its target, and how many findings of each kind there are.

    Args:
        report: as `Report.as_json` gives it.
    """
    counts: Mapping[str, int] = report.get("counts", {})
    found = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return f"{'NOT FIT' if counts.get('error') else 'fit'}: {len(report.get('graphs', ()))} graphs, {found}"


def _table(title: str, facts: dict[str, object]) -> None:
    print(title)
    for name, value in facts.items():
        text = json.dumps(value).strip('"')
        print(f"  {name:<26} {text if len(text) <= 100 else text[:97] + '...'}")


def _graphs(manifest: Manifest) -> None:
    print("graphs (MiB by the compiler's analysis: arguments, results in their place, workspace)")
    for name, graph in sorted(manifest.graphs.items()):
        print(f"  {name:<26} {'StableHLO' if graph.stablehlo else 'no StableHLO'}")
        for machine, executable in sorted(graph.executables.items()):
            sizes = ", ".join(f"{kind} {executable.memory.get(kind, 0) / _MIB:,.1f}" for kind in ("argument", "alias", "temp"))
            print(f"    {machine}: {executable.file.size / _MIB:,.1f} MiB made in {executable.seconds:.1f} s; {sizes}")


def _verify(directory: Path) -> int:
    from xlaserve.buckets.directories import verify

    try:
        finding = verify(directory)
    except ArtifactError as error:
        print(f"{directory}: damaged: {error}")
        return 1
    print(f"{directory}: {finding.checked} files as recorded, {len(finding.damaged)} damaged")
    for line in finding.damaged:
        print(f"  {line}")
    for name in finding.unlisted:
        print(f"  {name}: is not in the manifest and will not be loaded")
    return 1 if finding.damaged else 0


def _remove(directory: Path) -> int:
    from xlaserve.buckets.directories import remove

    try:
        left = remove(directory)
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be removed ({error.strerror})") from error
    print(f"{directory}: removed" + (f", but for {', '.join(left)}" if left else ""))
    return 0


_ACTIONS = {"show": _show, "verify": _verify, "rm": _remove}
