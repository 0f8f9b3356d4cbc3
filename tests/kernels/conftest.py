"""The library of CPU kernels, built where it is not there yet, and compilers that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xlaserve.kernels.build import BuildError, build
from xlaserve.kernels.library import Library, absence, library


@pytest.fixture(scope="session")
def native() -> Library:
    """The library; tests that need it are skipped only where it cannot be built or run."""
    try:
        build()
    except BuildError as error:
        pytest.skip(str(error).splitlines()[0])
    found = library()
    if found is None:
        pytest.skip(str(absence()))
    return found


@pytest.fixture
def compiler(tmp_path: Path) -> Callable[[int], str]:
    """Makes a C++ compiler: its status is what it ends with, and where that is 0 its outputs hold the command lines that led to them."""

    def make(status: int) -> str:
        path = tmp_path / f"c++{status}"
        path.write_text(
            f"""#!/bin/sh
[ {status} = 0 ] || {{ echo "no such header" >&2; exit {status}; }}
for last; do :; done
case "$1" in
  -shared) for file; do case "$file" in *.o) cat "$file" >> "$last" ;; esac; done ;;
  *) echo "$@" > "$last" ;;
esac
"""
        )
        path.chmod(0o755)
        return str(path)

    return make
