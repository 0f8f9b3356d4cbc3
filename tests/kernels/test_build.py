"""The library of CPU kernels: built where it can be, once, and its absence is told and stops nothing."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from xlaserve.kernels import build as module
from xlaserve.kernels.build import SOURCES, BuildError, build, ffi_headers, find_compiler, main, source_digest, stamp, unsupported

ROOT = Path(__file__).parents[2]
PATH = "/usr/bin:/bin"
pytestmark = pytest.mark.skipif(unsupported() is not None, reason=unsupported() or "")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("common.h", "library.cc", "avx2.cc", "avx512_vnni.cc", "avx512_bf16.cc"):
        (folder / name).write_text(f"// {name}\n")
    return folder


def test_a_compiler_is_what_cxx_names_or_the_first_that_is_there(tmp_path: Path, compiler: Callable[[int], str]) -> None:
    assert find_compiler({"CXX": f"{compiler(0)} -m64", "PATH": PATH}) == [compiler(0), "-m64"]
    with pytest.raises(BuildError, match="CXX names no-such-c"):
        find_compiler({"CXX": "no-such-c++", "PATH": PATH})
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        find_compiler({"PATH": str(tmp_path / "empty")})
    shutil.copy(compiler(0), tmp_path / "clang++")
    assert find_compiler({"PATH": str(tmp_path)}) == ["clang++"]


def test_it_is_compiled_again_only_where_sources_change(tmp_path: Path, sources: Path, compiler: Callable[[int], str]) -> None:
    library, environ = tmp_path / "out" / "_cpu.so", {"CXX": compiler(0), "PATH": PATH}
    library.parent.mkdir()
    assert build(library, sources, environ)
    assert stamp(library) == (source_digest(sources), ffi_headers()[1])
    assert not build(library, sources, environ)
    assert not build(library, sources, {"PATH": ""})  # nor is a compiler needed then
    (sources / "common.h").write_text("// changed\n")
    assert stamp(library) != (source_digest(sources), ffi_headers()[1])
    assert build(library, sources, environ)
    assert list(library.parent.iterdir()) == [library]


def test_a_library_of_a_newer_ffi_is_compiled_again(
    tmp_path: Path, sources: Path, compiler: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    include, (major, minor) = ffi_headers()
    library, environ = tmp_path / "_cpu.so", {"CXX": compiler(0), "PATH": PATH}
    monkeypatch.setattr(module, "ffi_headers", lambda: (include, (major, minor + 2)))
    assert build(library, sources, environ)
    assert not build(library, sources, environ)
    monkeypatch.undo()
    assert build(library, sources, environ)
    assert stamp(library) == (source_digest(sources), (major, minor))


def test_each_file_has_the_flags_of_its_instruction_set_and_no_other(tmp_path: Path, sources: Path, compiler: Callable[[int], str]) -> None:
    build(tmp_path / "_cpu.so", sources, {"CXX": compiler(0), "PATH": PATH})
    lines = {line.split(" -c ")[1].split()[0].rsplit("/", 1)[1]: line for line in (tmp_path / "_cpu.so").read_text().splitlines()}
    assert list(lines) == ["library.cc", "avx2.cc", "avx512_vnni.cc", "avx512_bf16.cc"]  # in the order in which the linker takes them
    assert " -m" not in lines["library.cc"]
    assert "-mavx2" in lines["avx2.cc"]
    assert "-mavx512" not in lines["avx2.cc"]
    assert "-mavx512vnni" in lines["avx512_vnni.cc"]
    assert "-mavx512bf16" not in lines["avx512_vnni.cc"]
    assert "-mavx512bf16" in lines["avx512_bf16.cc"]
    assert "-march" not in "".join(lines.values())


def test_flags_are_for_files_that_are_there() -> None:
    assert module.INSTRUCTION_SETS.keys() == {path.name for path in SOURCES.glob("avx*.cc")}


def test_a_failing_compiler_leaves_the_library_that_was_there(tmp_path: Path, sources: Path, compiler: Callable[[int], str]) -> None:
    library = tmp_path / "out" / "_cpu.so"
    library.parent.mkdir()
    library.write_bytes(b"old")
    with pytest.raises(BuildError, match=r"(?s)does not compile them \(exit code 3\)\nno such header"):
        build(library, sources, {"CXX": compiler(3), "PATH": PATH})
    assert library.read_bytes() == b"old"
    assert list(library.parent.iterdir()) == [library]


def test_by_hand_it_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "unsupported", lambda: "kernels are for another planet")
    assert main() == 1
    assert capsys.readouterr().err == "no kernels: kernels are for another planet\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of the project as the hook needs, with sources that are quick to compile."""
    folder = tmp_path / "project"
    (folder / "xlaserve" / "kernels" / "cpu").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py", "xlaserve/__init__.py", "xlaserve/kernels/build.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "xlaserve" / "kernels" / "cpu" / "library.cc").write_text("// nothing\n")
    monkeypatch.delenv("XLASERVE_NATIVE", raising=False)
    return folder


def wheel(project: Path, version: str = "standard") -> Path:
    return Path(next(WheelBuilder(str(project)).build(directory=str(project / "dist"), versions=[version])))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_with_the_library_is_for_this_platform(
    project: Path, compiler: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(0))
    assert "jaxlib==0.10.0; python_version < '3.15'" in WheelBuilder(str(project)).config.dependencies
    made = wheel(project)
    assert made.name.endswith("-py3-none-linux_x86_64.whl")
    assert {"xlaserve/kernels/_cpu.so", "xlaserve/kernels/cpu/library.cc"} <= names(made)


@pytest.mark.parametrize("why", ["XLASERVE_NATIVE=0", "CXX names no-such-c++", "does not compile them"])
def test_a_wheel_without_is_for_all_and_says_why(
    project: Path, compiler: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-c++" if "such" in why else compiler(1))
    if "NATIVE" in why:
        monkeypatch.setenv("XLASERVE_NATIVE", "0")
    (project / "xlaserve" / "kernels" / "_cpu.so").write_bytes(b"of an older build")
    assert (WheelBuilder(str(project)).config.dependencies == []) == ("compile" not in why)
    made = wheel(project)
    assert made.name.endswith("-py3-none-any.whl")
    assert "xlaserve/kernels/_cpu.so" not in names(made)
    captured = capsys.readouterr()
    assert why in captured.out + captured.err


def test_kernels_can_be_a_condition(project: Path, compiler: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(1))
    monkeypatch.setenv("XLASERVE_NATIVE", "1")
    with pytest.raises(Exception, match="does not compile them"):
        wheel(project)
