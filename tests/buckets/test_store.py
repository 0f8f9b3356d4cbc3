"""Artifact directories: files appear whole or not at all, and what is not what was stored is named and never given out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlaserve.buckets import directories
from xlaserve.buckets import store as store_module
from xlaserve.buckets.manifest import SCHEMA
from xlaserve.buckets.store import GraphStore, cache_directory, default_root
from xlaserve.errors import ArtifactError

PROGRAM: dict[str, Any] = {
    "platform": "cpu",
    "mesh": {"tp": 1},
    "kv": {"shape": [9, 2, 16, 16], "dtype": "float32"},
    "jax_config": {"jax_enable_x64": False},
    "model": {"norm_eps": 1e-5, "layers": [{"window": None}, {"window": 16}], "tied": True},
    "dtype": "float32",
    "num_blocks": 9,
    "source": "0011",
}
MACHINE: dict[str, Any] = {
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "jax-cuda13-plugin": "0.10.2",
    "device_kind": "cpu",
    "platform_version": "PJRT 1",
    "cores": "2",
    "xla_flags": "",
    "cpu_features": ["avx2", "fma"],
}
GRAPH = "generate-4-16"
CODE, TEXT = b"the executable of this graph", b"the StableHLO of this graph"


def make(root: Path, program: dict[str, Any] | None = None, machine: dict[str, Any] | None = None) -> GraphStore:
    return GraphStore(root / "a", PROGRAM | (program or {}), MACHINE | (machine or {}), lambda: {"model": "tiny"})


def filled(root: Path) -> GraphStore:
    store = make(root)
    store.save(GRAPH, stablehlo=TEXT, executable=CODE, seconds=1.5, memory={"temp": 7})
    store.save("other", stablehlo=b"other text", executable=b"the executable of another graph")
    return store


def executable_path(store: GraphStore, graph: str = GRAPH) -> Path:
    [path] = store.directory.glob(f"{graph}.*.xla")
    return path


def manifest_of(store: GraphStore) -> dict[str, Any]:
    return json.loads((store.directory / "manifest.json").read_bytes())


def names(store: GraphStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir() if path.name != "locks")


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.verdict().empty
    assert store.executable(GRAPH) is store.stablehlo(GRAPH) is None
    filled(tmp_path)
    for again in (store, make(tmp_path)):
        assert (again.executable(GRAPH), again.stablehlo(GRAPH)) == (CODE, TEXT)
        assert again.executable("generate-8-16") is again.stablehlo("generate-8-16") is None
        assert str(again.verdict()) == "executables hit; StableHLO hit"
    manifest = manifest_of(store)
    assert (manifest["schema"], manifest["about"], manifest["program"]) == (SCHEMA, {"model": "tiny"}, PROGRAM)
    [(machine, facts)] = manifest["machines"].items()
    assert facts == MACHINE
    kept = manifest["graphs"][GRAPH]["executables"][machine]
    assert (kept["seconds"], kept["memory"], kept["file"]["size"]) == (1.5, {"temp": 7}, len(CODE))


def test_saving_again_replaces_and_keeps_the_rest(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = names(store)
    store.save(GRAPH, executable=b"new and longer than it was before")
    assert (store.executable(GRAPH), store.stablehlo(GRAPH)) == (b"new and longer than it was before", TEXT)
    assert store.executable("other") == b"the executable of another graph"
    assert names(store) == before


def test_machines_share_a_directory(tmp_path: Path) -> None:
    one, two = filled(tmp_path), make(tmp_path, machine={"cores": "64"})
    assert two.verdict().executables == "cores: 64 here, 2 in the artifact"
    assert two.stablehlo(GRAPH) == TEXT
    two.save(GRAPH, executable=b"for 64 cores")
    assert (one.executable(GRAPH), two.executable(GRAPH)) == (CODE, b"for 64 cores")
    assert two.executable("other") is None
    nearest = make(tmp_path, machine={"cores": "2", "jax": "1"})
    assert nearest.verdict().executables == "jax: 1 here, 0.10.2 in the artifact"


def test_what_the_maker_could_not_know_does_not_count(tmp_path: Path) -> None:
    make(tmp_path, machine={"platform_version": None}).save(GRAPH, executable=CODE)
    assert make(tmp_path).executable(GRAPH) == CODE


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def other_graph(path: Path) -> None:
    shutil.copy(path.with_name(path.name.replace(GRAPH, "other")), path)


def missing(path: Path) -> None:
    path.unlink()


def directory_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_pickle(path: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")


@pytest.mark.parametrize("form", ["executable", "stablehlo"])
@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        (truncate, "bytes, and"),
        (halve, "bytes, and"),
        (empty, "has 0 bytes, and"),
        (flip, "its sha256 is not the recorded one"),
        (append, "bytes, and"),
        (other_graph, "bytes, and|sha256"),
        (a_pickle, "has 24 bytes, and"),
        (missing, "cannot be read .No such file"),
        (directory_in_place, "cannot be read .Is a directory"),
        (link_to_itself, "cannot be read .Too many levels"),
    ],
)
def test_a_file_that_was_not_stored_so_is_named_and_not_given_out(
    damage: Callable[[Path], None], answer: str, form: str, tmp_path: Path
) -> None:
    store = filled(tmp_path)
    path = executable_path(store) if form == "executable" else store.directory / f"{GRAPH}.stablehlo"
    damage(path)
    with pytest.raises(ArtifactError, match=answer) as caught:
        getattr(store, form)(GRAPH)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.executable("other") == b"the executable of another graph"
    found = directories.verify(store.directory)
    assert [line.partition(":")[0] for line in found.damaged] == [path.name]
    if damage is not directory_in_place:
        store.save(GRAPH, **{form: b"made again"})
        assert getattr(store, form)(GRAPH) == b"made again"


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    """No byte of a file or of the manifest can change without the load being refused, or nothing found, or exactly what was stored."""
    store = make(tmp_path)
    store.save(GRAPH, executable=b"machine\ncode", seconds=1.5)
    for path in (executable_path(store), store.directory / "manifest.json"):
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :])
            found: bytes | None = None
            with contextlib.suppress(ArtifactError):
                found = store.executable(GRAPH)
            assert found in (None, b"machine\ncode"), at
        path.write_bytes(whole)


def edit(**change: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(manifest: dict[str, Any]) -> dict[str, Any]:
        return manifest | change

    return apply


def without(field: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: {name: value for name, value in manifest.items() if name != field}


def with_record(**change: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["graphs"][GRAPH]["stablehlo"].update(change)
        return manifest

    return apply


def renamed(graph: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["graphs"][graph] = manifest["graphs"].pop(GRAPH)
        return manifest

    return apply


@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b"null", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"{}", f"schema: {SCHEMA} here, None in the artifact"),
        (edit(schema=1), f"schema: {SCHEMA} here, 1 in the artifact"),
        (edit(schema=str(SCHEMA)), f"schema: {SCHEMA} here, {SCHEMA} in the artifact"),
        (edit(graphs=[]), r"is damaged: Expected `object`, got `array` - at `\$.graphs`"),
        (edit(graphs={GRAPH: 3}), "is damaged"),
        (edit(machines={"../../etc": {}}), "is damaged"),
        (edit(program=None), r"got `null` - at `\$.program`"),
        (edit(run="something"), "unknown field `run`"),
        (without("graphs"), "missing required field `graphs`"),
        (without("machines"), "missing required field `machines`"),
        (with_record(sha256="00"), "is damaged"),
        (with_record(sha256=None), "is damaged"),
        (with_record(size=-1), "is damaged"),
        (with_record(size="3"), "is damaged"),
        (with_record(path="/etc/passwd"), "unknown field `path`"),
        (renamed("../generate"), "is damaged"),
        (renamed(""), "is damaged"),
    ],
)
def test_a_damaged_manifest_is_named_and_begun_anew(damage: Any, answer: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.directory / "manifest.json"
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(damage(manifest_of(store))).encode())
    for ask in (store.executable, store.stablehlo):
        with pytest.raises(ArtifactError, match=answer) as caught:
            ask(GRAPH)
        assert str(path) in str(caught.value)
    verdict = store.verdict()
    assert not verdict.empty
    assert str(verdict).startswith(f"miss ({path}: ")
    with pytest.raises(ArtifactError):
        directories.verify(store.directory)
    store.save(GRAPH, executable=CODE)
    assert store.executable(GRAPH) == CODE
    assert store.executable("other") is None


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"platform": "cuda"}, "platform: cuda here, cpu in the artifact"),
        ({"mesh": {"tp": 4}}, "mesh.tp: 4 here, 1 in the artifact"),
        ({"kv": {"shape": [9, 2, 32, 16], "dtype": "float32"}}, r"kv.shape\[2\]: 32 here, 16 in the artifact"),
        ({"jax_config": {"jax_enable_x64": True}}, "jax_config.jax_enable_x64: true here, false in the artifact"),
        ({"model": PROGRAM["model"] | {"norm_eps": 1e-6}}, "model.norm_eps: 1e-06 here, 1e-05 in the artifact"),
        ({"model": PROGRAM["model"] | {"layers": [{"window": None}]}}, "model.layers: 1 entries here, 2 in the artifact"),
        (
            {"model": PROGRAM["model"] | {"layers": [{"window": 16}, {"window": 16}]}},
            r"model.layers\[0\].window: 16 here, nothing in the artifact",
        ),
        ({"dtype": "bfloat16"}, "dtype: bfloat16 here, float32 in the artifact"),
        ({"num_blocks": 10}, "num_blocks: 10 here, 9 in the artifact"),
        ({"source": "0012"}, "source: 0012 here, 0011 in the artifact"),
        ({"branches": True}, "branches: true here, nothing in the artifact"),
        ({"dtype": "b", "num_blocks": 1, "source": "c", "platform": "d"}, "dtype: .*; num_blocks: .*; platform: .*; and 1 more"),
    ],
)
def test_another_program_is_a_miss_of_everything_that_names_the_field(change: dict[str, Any], answer: str, tmp_path: Path) -> None:
    filled(tmp_path)
    other = make(tmp_path, change)
    with pytest.raises(ArtifactError, match=f"^{answer}$"):
        other.executable(GRAPH)
    with pytest.raises(ArtifactError, match=f"^{answer}$"):
        other.stablehlo(GRAPH)
    with pytest.raises(ArtifactError, match="holds another artifact"):
        other.check_place()
    with pytest.raises(ArtifactError, match="holds another artifact"):
        other.save(GRAPH, executable=b"of another program")
    assert make(tmp_path).executable(GRAPH) == CODE


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"jax": "0.12.0.1"}, "jax: 0.12.0.1 here, 0.10.2 in the artifact"),
        ({"jaxlib": "0.12.0"}, "jaxlib: 0.12.0 here, 0.10.2 in the artifact"),
        ({"flax": "0.13"}, "flax: 0.13 here, 0.12.8 in the artifact"),
        ({"jax-cuda13-plugin": "0.12"}, "jax-cuda13-plugin: 0.12 here, 0.10.2 in the artifact"),
        ({"libneuronxla": "3"}, "libneuronxla: 3 here, nothing in the artifact"),
        ({"device_kind": "NVIDIA A100"}, "device_kind: NVIDIA A100 here, cpu in the artifact"),
        ({"platform_version": "PJRT 2"}, "platform_version: PJRT 2 here, PJRT 1 in the artifact"),
        ({"cores": "1"}, "cores: 1 here, 2 in the artifact"),
        ({"xla_flags": "--xla_x=1"}, "xla_flags: --xla_x=1 here, nothing in the artifact"),
        ({"cpu_features": ["fma"]}, "cpu_features: missing here avx2"),
        ({"cpu_features": ["avx2", "avx512f", "fma"]}, "cpu_features: only here avx512f"),
        ({"cpu_features": ["neon"]}, "cpu_features: missing here avx2 fma; only here neon"),
    ],
)
def test_another_machine_is_a_miss_of_executables_that_names_the_field(change: dict[str, Any], answer: str, tmp_path: Path) -> None:
    filled(tmp_path)
    other = make(tmp_path, machine=change)
    with pytest.raises(ArtifactError, match=f"^{answer}$"):
        other.executable(GRAPH)
    assert other.stablehlo(GRAPH) == TEXT
    assert str(other.verdict()) == f"executables miss ({answer}); StableHLO hit"
    other.check_place()


def test_a_directory_of_stablehlo_says_so(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.save(GRAPH, stablehlo=TEXT)
    assert str(store.verdict()) == "executables miss (holds no executables); StableHLO hit"


@pytest.mark.parametrize("change", [{"source": "1"}, {"dtype": "bfloat16"}, {"new": None}])
def test_a_cache_keeps_each_program_in_its_own_directory(change: dict[str, Any], tmp_path: Path) -> None:
    assert cache_directory(tmp_path, "tiny", PROGRAM) != cache_directory(tmp_path, "tiny", PROGRAM | change)
    backwards = dict(reversed(PROGRAM.items()))
    assert cache_directory(tmp_path, "tiny", PROGRAM) == cache_directory(tmp_path, "tiny", backwards)


@pytest.mark.parametrize("name", ["org/model", "../../etc/passwd", "a b:c*?", "", "...", "x" * 500, "名前", ".hidden"])
def test_any_model_name_is_one_directory_inside_the_root(name: str, tmp_path: Path) -> None:
    directory = cache_directory(tmp_path, name, PROGRAM)
    assert directory.parent == tmp_path
    assert not directory.name.startswith(".")
    directory.mkdir()


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_an_interrupted_save_leaves_no_half(fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off before the n-th file is in place: afterwards the graph is not there, nor any litter, and it can be saved again."""
    store = make(tmp_path)
    real, calls = os.replace, iter(range(10))

    def replace(source: str, target: str) -> None:
        if next(calls) == fail_at:
            raise OSError("no space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no space"):
        store.save(GRAPH, stablehlo=TEXT, executable=CODE)
    monkeypatch.undo()
    assert store.executable(GRAPH) is store.stablehlo(GRAPH) is None
    assert not [name for name in names(store) if name.startswith(".")]
    store.save(GRAPH, stablehlo=TEXT, executable=CODE)
    assert (store.executable(GRAPH), store.stablehlo(GRAPH)) == (CODE, TEXT)


_KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.buckets.test_store import make
store = make(Path({tmp!r}))
store.save("first", executable=b"whole")
real, calls = os.replace, iter(range(9))
os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == {moment} else real(a, b)
with store.lock("second"):
    store.save("second", stablehlo=b"text", executable=b"half")
"""


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_process_killed_while_it_saves_leaves_a_usable_directory(moment: int, tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    code = _KILLED.format(root=root, tmp=str(tmp_path), moment=moment)
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -9
    store = make(tmp_path)
    assert store.executable("first") == b"whole"
    assert store.executable("second") is None
    assert directories.verify(store.directory).unlisted
    with store.lock("second"):  # the system took the locks back
        store.save("second", stablehlo=b"text", executable=b"whole too")
    assert store.executable("second") == b"whole too"
    assert directories.remove(store.directory) == []
    assert not store.directory.exists()


def test_a_lock_keeps_other_processes_out(tmp_path: Path) -> None:
    store = make(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "from pathlib import Path\nfrom tests.buckets.test_store import make\n"
        f"store = make(Path({str(tmp_path)!r}))\n"
        "print('there', flush=True)\n"
        "with store.lock('g'):\n print(store.executable('g'), flush=True)\n"
    )
    with store.lock("g"):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        store.save("g", executable=b"made meanwhile")
        assert process.poll() is None
    assert process.communicate(timeout=60)[0] == "b'made meanwhile'\n"


def test_threads_that_save_and_load_see_whole_files_and_lose_none(tmp_path: Path) -> None:
    contents = [bytes([i]) * (1 << 16) for i in range(4)]
    wrong: list[object] = []

    def work(content: bytes) -> None:
        store = make(tmp_path)
        for turn in range(5):
            with store.lock(GRAPH):
                store.save(GRAPH, executable=content)
                if (found := store.executable(GRAPH)) != content:
                    wrong.append(found)
            store.save(f"g{content[0]}-{turn}", executable=content)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(manifest_of(make(tmp_path))["graphs"]) == 1 + 4 * 5
    found = directories.verify(tmp_path / "a")
    assert (found.damaged, found.unlisted) == ((), ())


def test_a_place_that_cannot_be_written_is_an_os_error_and_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a directory")
    store = make(tmp_path)
    with pytest.raises(OSError, match="a"):
        store.save(GRAPH, executable=CODE)
    with store.lock(GRAPH):
        pass


def test_a_place_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a directory")
    with pytest.raises(ArtifactError, match=str(tmp_path / "a")):
        make(tmp_path).executable(GRAPH)


def test_the_default_place_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLASERVE_COMPILE_CACHE", str(tmp_path / "named"))
    assert default_root() == tmp_path / "named"
    assert cache_directory(None, "m", PROGRAM).parent == tmp_path / "named"
    monkeypatch.delenv("XLASERVE_COMPILE_CACHE")
    checkout = Path(store_module.__file__).resolve().parents[2] / "compile_cache"
    assert default_root() == checkout
    monkeypatch.setattr(store_module, "__file__", str(tmp_path / "site-packages" / "xlaserve" / "buckets" / "store.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "xlaserve" / "compile_cache"


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `xlaserve artifacts` on a cache that holds one directory, `a`."""
    from xlaserve.cli import main

    filled(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["artifacts", "--compile-cache", str(tmp_path), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_artifacts_are_listed_and_shown(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, out = command("ls")
    assert code == 0
    assert "  a  cpu (cpu)  2 graphs" in out
    code, out = command("show", "a")
    assert code == 0
    for text in (GRAPH, "platform_version           PJRT 1", "num_blocks                 9", "tiny"):
        assert text in out
    (tmp_path / "a" / "manifest.json").write_text("{")
    assert "a  damaged: " in command("ls")[1]
    assert command("show", "a")[0] == 1


def test_artifacts_are_verified(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert command("verify") == (0, f"{tmp_path / 'a'}: 4 files as recorded, 0 damaged\n")
    flip(tmp_path / "a" / f"{GRAPH}.stablehlo")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    code, out = command("verify", str(tmp_path / "a"))
    assert code == 1
    assert "3 files as recorded, 1 damaged" in out
    assert f"  {GRAPH}.stablehlo: its sha256 is not the recorded one\n" in out
    assert "  notes.txt: is not in the manifest and will not be loaded\n" in out
    assert command("verify", "nothing")[0] == 1


def test_artifacts_are_removed_and_nothing_else(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "generate-4-16.stablehlo").write_text("mine")
    code, out = command("rm", "mine")
    assert (code, (tmp_path / "mine" / "generate-4-16.stablehlo").exists()) == (1, True)
    assert "left alone" in out
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert command("rm", "a") == (0, f"{tmp_path / 'a'}: removed, but for notes.txt\n")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]
