#!/usr/bin/env python3
"""Makes the environment that this checkout needs, in `.venv`, and runs something in it. Needs Python 3.11 or newer and nothing else.

    python3 run.py serve [ARGUMENTS]     xlaserve serve ARGUMENTS
    python3 run.py test [ARGUMENTS]      the tests (arguments go to pytest)
    python3 run.py check                 formatting, lint and types
    python3 run.py COMMAND ...           any other xlaserve command

Packages come from the index that pip is configured for, at the versions in constraints.txt. A second run installs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path
from urllib.parse import urljoin

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
SIMULATION = "tests/platforms/simulated_neuron/requirements.txt"
KERNELS = sorted(path.relative_to(HERE).as_posix() for path in (HERE / "xlaserve" / "kernels" / "cpu").iterdir())
SOURCES = ("pyproject.toml", "constraints.txt", SIMULATION, "hatch_build.py", "xlaserve/kernels/build.py", *KERNELS)


def main() -> int:
    if sys.version_info < (3, 11):
        print(f"xlaserve needs Python 3.11 or newer; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 1
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in ("test", "check"):
        prepare(".")
        return run("-m", "xlaserve", command, *rest)
    prepare(".[dev]")
    if command == "test":
        prepare(SIMULATION, "--no-deps", "-r", SIMULATION)
        return run("-m", "pytest", *rest)
    checks = (("-m", "ruff", "format", "--check", "."), ("-m", "ruff", "check", "."), ("-m", "basedpyright", "--level", "warning"))
    return max([run(*check) for check in checks])


def prepare(requirement: str, *arguments: str) -> None:
    """Create `.venv` and install what `requirement` names, unless that is what is there. By default it names this checkout and its extras;
    `arguments` are pip's for anything else.
    """
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES) + sys.version.encode()).hexdigest()
    stamp = VENV / "installed.json"
    installed = json.loads(stamp.read_text()) if stamp.is_file() else {}
    if installed.get("digest") == digest and requirement in installed["requirements"]:
        return
    print(f"Installing into {VENV} (this takes a minute or two the first time)", file=sys.stderr, flush=True)
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True, clear=VENV.exists())
        except (subprocess.CalledProcessError, SystemExit, ImportError):
            # Debian keeps ensurepip in a package of its own (python3-venv): take pip itself from the index.
            venv.create(VENV, with_pip=False, clear=True)
            bootstrap_pip()
    what = arguments or ("-c", "constraints.txt", "-e", requirement)
    if code := run("-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what):
        raise SystemExit(code)
    known = installed["requirements"] if installed.get("digest") == digest else []
    stamp.write_text(json.dumps({"digest": digest, "requirements": sorted({*known, requirement, "."})}))


def bootstrap_pip() -> None:
    """Install pip from its own wheel, found through the index's page of links (PEP 503)."""
    page = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    with urllib.request.urlopen(page, timeout=60) as answer:
        links = re.findall(r'href="([^"]*/pip-([0-9.]+)-py3-none-any\.whl(?:#sha256=([0-9a-f]+))?)"', answer.read().decode())
    link, version, sha256 = max(links, key=lambda link: [int(part) for part in link[1].split(".")])
    wheel = VENV / f"pip-{version}-py3-none-any.whl"
    with urllib.request.urlopen(urljoin(page, link), timeout=60) as answer:
        wheel.write_bytes(answer.read())
    if sha256 and hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{wheel.name} is not what the index says it is (sha256 differs)")
    subprocess.run([PYTHON, f"{wheel}/pip", "install", "--quiet", "--no-index", str(wheel)], check=True)
    wheel.unlink()


def run(*arguments: str) -> int:
    """Run Python of `.venv` in the checkout; its exit status."""
    try:
        return subprocess.call([str(PYTHON), *arguments], cwd=HERE)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
