"""The library of CPU kernels as a process loads it; where it does not, the reason names what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xlaserve.kernels import library as module
from xlaserve.kernels.build import COMMAND, LIBRARY, source_digest, stamp, unsupported
from xlaserve.kernels.library import ABI, TARGETS, Library, library, open_library
from xlaserve.platforms.cpu import cpu_features

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=unsupported() or "")


def test_it_is_loaded_once_and_says_what_it_uses(native: Library) -> None:
    assert library() is native
    assert native.version == f"cpu-{ABI}"
    assert native.instruction_set in ("avx2", "avx512", "avx512_vnni", "avx512_bf16")
    assert all(hasattr(native.functions, name) for name in TARGETS)


@pytest.mark.usefixtures("native")
def test_it_takes_the_best_instruction_set_that_the_cpu_has() -> None:
    features = set(cpu_features())
    needed = {
        "avx512_bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"},
        "avx512_vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx2": {"avx2", "fma", "f16c"},
    }
    environ = {name: value for name, value in os.environ.items() if name != "XLASERVE_CPU_ISA"}
    code = "from xlaserve.kernels.library import open_library; print(open_library().instruction_set)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [next(name for name, these in needed.items() if these <= features)]


def test_loading_it_needs_no_jax(native: Library) -> None:
    code = "import sys; from xlaserve.kernels.library import *; assert isinstance(open_library(), Library); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(module.__file__).parents[2])


def test_reading_takes_time_and_every_byte(native: Library) -> None:
    assert native.read(np.ones((3 << 20) + 5, np.uint8)) > 0
    assert native.read(np.ones(0, np.uint8)) >= 0


def test_a_library_that_is_not_there_can_be_built(tmp_path: Path) -> None:
    assert open_library(tmp_path / "_cpu.so") == f"they are not built; `{COMMAND}` builds them where there is a C++ compiler"


@pytest.mark.parametrize("content", [b"", b"xlaserve kernels " + b"0" * 64 + b" ffi 0.3"])
def test_a_library_of_other_sources_is_not_loaded(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_cpu.so").write_bytes(content)
    assert f"not built from the sources beside it; `{COMMAND}`" in str(open_library(tmp_path / "_cpu.so"))


def test_a_library_of_a_newer_jax_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "_cpu.so").write_text(f"xlaserve kernels {source_digest()} ffi 0.99")
    assert "built with a newer JAX than this one" in str(open_library(tmp_path / "_cpu.so"))


def test_a_damaged_library_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "_cpu.so").write_text(f"xlaserve kernels {source_digest()} ffi 0.1")
    assert "does not load" in str(open_library(tmp_path / "_cpu.so"))


def test_a_library_of_other_calls_is_not_used(native: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABI", ABI + 1)
    assert f"is of version {ABI}, and version {ABI + 1} is needed" in str(open_library.__wrapped__(LIBRARY))


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "kernels are for Linux on x86-64" in str(open_library.__wrapped__(LIBRARY))


def test_the_library_tells_what_it_was_built_from(native: Library) -> None:
    found = stamp(LIBRARY)
    assert found is not None
    assert found[0] == source_digest()
    native.functions.xlaserve_stamp.restype = module.ctypes.c_char_p
    assert native.functions.xlaserve_stamp().decode().startswith(f"xlaserve kernels {found[0]}")
