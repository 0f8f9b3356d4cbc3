"""Compiles `cpu/*.cc` into the library of CPU kernels beside this file: `python -m xlaserve.kernels.build`.

Needs a C++20 compiler, and jaxlib for the headers of XLA's FFI. What is built already is left as it is. The build hook runs this file
before xlaserve or anything it depends on is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

COMMAND = "python -m xlaserve.kernels.build"
SOURCES = Path(__file__).parent / "cpu"
LIBRARY = Path(__file__).parent / "_cpu.so"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-ffp-contract=fast")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
INSTRUCTION_SETS: Mapping[str, tuple[str, ...]] = {
    "avx2.cc": _AVX2,
    "avx512.cc": _AVX512,
    "avx512_vnni.cc": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16.cc": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
}
"""What a file may use besides what every x86-64 has. Which of them runs is decided when the library is loaded."""

_STAMP = re.compile(rb"xlaserve kernels ([0-9a-f]{64}) ffi ([0-9]+)\.([0-9]+)")
_FFI_VERSION = re.compile(r"#define XLA_FFI_API_(?:MAJOR|MINOR) ([0-9]+)")


class BuildError(Exception):
    """Why there is no library. The first line is for everyone, further ones are the compiler's."""


def unsupported() -> str | None:
    """Why there are no kernels for this system; None where there are."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return None
    return f"kernels are for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"


def find_compiler(environ: Mapping[str, str]) -> list[str]:
    """The command of the C++ compiler: what CXX names, else the first of `COMPILERS` that is there.

    Raises:
        BuildError: there is none.
    """
    if named := shlex.split(environ.get("CXX", "")):
        if shutil.which(named[0], path=environ.get("PATH")) is None:
            raise BuildError(f"CXX names {named[0]}, which is not there")
        return named
    for name in COMPILERS:
        if shutil.which(name, path=environ.get("PATH")) is not None:
            return [name]
    raise BuildError(f"there is no C++ compiler (looked for CXX, {', '.join(COMPILERS)})")


def source_digest(sources: Path = SOURCES) -> str:
    """sha256 of the sources and of how they are compiled."""
    digest = hashlib.sha256(repr((FLAGS, sorted(INSTRUCTION_SETS.items()))).encode())
    for path in sorted((*sources.glob("*.h"), *sources.glob("*.cc"))):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def stamp(library: Path) -> tuple[str, tuple[int, int]] | None:
    """What a library was built from: `source_digest`, and the FFI version of the headers; None where it does not tell."""
    try:
        found = _STAMP.search(library.read_bytes())
    except OSError:
        return None
    return None if found is None else (found[1].decode(), (int(found[2]), int(found[3])))


def build(library: Path = LIBRARY, sources: Path = SOURCES, environ: Mapping[str, str] = os.environ) -> bool:
    """Have the library there, built from the sources as they are.

    Args:
        library: the file to write.
        sources: folder of the C++ files.
        environ: names the compiler (CXX, PATH).

    Returns:
        Whether anything had to be compiled.

    Raises:
        BuildError: it cannot be built.
    """
    if (why := unsupported()) is not None:
        raise BuildError(why)
    include, version = ffi_headers()
    digest = source_digest(sources)
    # A library runs where the FFI is at least as new as the headers that it was built with.
    if (found := stamp(library)) is not None and found[0] == digest and found[1] <= version:
        return False
    compiler = find_compiler(environ)
    name = f"{digest} ffi {version[0]}.{version[1]}"
    with tempfile.TemporaryDirectory(prefix="xlaserve-kernels-") as folder:
        # Of a function that several files have, such as a template's, the linker takes the first: let that be one that every CPU can run.
        ordered = sorted(sources.glob("*.cc"), key=lambda source: (len(INSTRUCTION_SETS.get(source.name, ())), source.name))
        objects = {source: Path(folder) / f"{source.stem}.o" for source in ordered}

        def compile_one(source: Path) -> None:
            flags = (*FLAGS, *INSTRUCTION_SETS.get(source.name, ()), f'-DXLASERVE_STAMP="xlaserve kernels {name}"', f"-isystem{include}")
            _run([*compiler, *flags, "-c", str(source), "-o", str(objects[source])], environ)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        # Linked elsewhere and moved: processes that have the old library keep it.
        handle, temporary = tempfile.mkstemp(dir=library.parent, prefix=".", suffix=library.name)
        os.close(handle)
        try:
            _run([*compiler, "-shared", "-pthread", *map(str, objects.values()), "-o", temporary], environ)
            Path(temporary).chmod(0o755)
            os.replace(temporary, library)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return True


def ffi_headers() -> tuple[Path, tuple[int, int]]:
    """Folder of the headers of XLA's FFI as the installed jaxlib has them, and their version.

    Raises:
        BuildError: there are none.
    """
    found = find_spec("jaxlib")
    if found is None or not found.submodule_search_locations:
        raise BuildError("jaxlib, which has the headers of XLA's FFI, is not installed")
    include = Path(found.submodule_search_locations[0]) / "include"
    try:
        major, minor = _FFI_VERSION.findall((include / "xla" / "ffi" / "api" / "c_api.h").read_text())
    except (OSError, ValueError) as error:
        raise BuildError(f"{include} holds no headers of XLA's FFI as xlaserve knows them") from error
    return include, (int(major), int(minor))


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(environ))
    except OSError as error:
        raise BuildError(f"{command[0]} does not run ({error.strerror})") from error
    if done.returncode:
        raise BuildError(f"{command[0]} does not compile them (exit code {done.returncode})\n{done.stderr.strip()}")


def main() -> int:
    """Build in place, and say what was done."""
    try:
        done = build()
    except (BuildError, OSError) as error:
        print(f"no kernels: {error}", file=sys.stderr)
        return 1
    print(f"{LIBRARY}: {'built' if done else 'is up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
