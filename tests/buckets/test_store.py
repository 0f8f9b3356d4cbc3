"""The artifact store: files appear whole or not at all, and what is not what was stored is named and never given out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xlaserve.buckets import store as store_module
from xlaserve.buckets.store import GraphStore, default_root
from xlaserve.errors import ArtifactError

KEY = {"jax": "1.2.3", "dtype": "float32"}
GRAPH = "generate-4-16"


def make(root: Path, name: str = "tiny", **key: object) -> GraphStore:
    return GraphStore(root, name, {**KEY, **key})


def files(store: GraphStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.directory.iterdir()}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.load(GRAPH) is None
    store.save(GRAPH, b"machine code", seconds=1.5, temp=7)
    assert store.load(GRAPH) == b"machine code"
    assert make(tmp_path).load(GRAPH) == b"machine code"
    assert store.load("generate-8-16") is None
    header = json.loads((store.directory / f"{GRAPH}.xla").read_bytes().split(b"\n")[0])
    assert (header["graph"], header["key"], header["seconds"], header["temp"]) == (GRAPH, store.directory.name, 1.5, 7)
    assert json.loads((store.directory / "manifest.json").read_text()) == {"schema": store_module.SCHEMA, **KEY}


def test_saving_again_replaces(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.save(GRAPH, b"old")
    store.save(GRAPH, b"new and longer")
    assert store.load(GRAPH) == b"new and longer"
    assert sorted(files(store)) == [f"{GRAPH}.xla", "manifest.json"]


@pytest.mark.parametrize("change", [{"jax": "1.2.4"}, {"dtype": "bfloat16"}, {"new": None}, {"dtype": None}])
def test_any_change_of_the_key_is_another_directory(change: dict[str, object], tmp_path: Path) -> None:
    store = make(tmp_path)
    store.save(GRAPH, b"content")
    other = make(tmp_path, **change)
    assert other.directory != store.directory
    assert other.load(GRAPH) is None


def test_the_order_of_the_key_is_no_change(tmp_path: Path) -> None:
    assert GraphStore(tmp_path, "m", {"a": 1, "b": 2}).directory == GraphStore(tmp_path, "m", {"b": 2, "a": 1}).directory


@pytest.mark.parametrize("name", ["org/model", "../../etc/passwd", "a b:c*?", "", "...", "x" * 500, "名前", ".hidden"])
def test_any_model_name_is_one_directory_inside_the_root(name: str, tmp_path: Path) -> None:
    store = make(tmp_path, name)
    assert store.directory.parent == tmp_path
    store.save(GRAPH, b"content")
    assert store.load(GRAPH) == b"content"
    assert not store.directory.name.startswith(".")


def path_of(store: GraphStore, graph: str = GRAPH) -> Path:
    return store.directory / f"{graph}.xla"


def truncate(store: GraphStore) -> None:
    path_of(store).write_bytes(path_of(store).read_bytes()[:-1])


def empty(store: GraphStore) -> None:
    path_of(store).write_bytes(b"")


def flip(store: GraphStore) -> None:
    content = bytearray(path_of(store).read_bytes())
    content[-5] ^= 1
    path_of(store).write_bytes(content)


def append(store: GraphStore) -> None:
    path_of(store).write_bytes(path_of(store).read_bytes() + b"\n")


def other_graph(store: GraphStore) -> None:
    shutil.copy(path_of(store, "other"), path_of(store))


def other_engine(store: GraphStore) -> None:
    other = GraphStore(store.directory.parent, "tiny", {**KEY, "dtype": "float16"})
    other.save(GRAPH, b"the executable of another engine")
    shutil.copy(path_of(other), path_of(store))


def directory_in_place(store: GraphStore) -> None:
    path_of(store).unlink()
    path_of(store).mkdir()


def header(content: bytes) -> Callable[[GraphStore], None]:
    def write(store: GraphStore) -> None:
        path_of(store).write_bytes(content + b"\n" + path_of(store).read_bytes().split(b"\n", 1)[1])

    write.__name__ = f"header {content!r}"
    return write


HEADERS = (
    b"",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b'{"graph": "generate-4-16"}',
    b'{"graph": [], "key": {}, "sha256": 5}',
    b"\xff\xfe\x00",
)


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, flip, append, other_graph, other_engine, directory_in_place, *(header(content) for content in HEADERS)],
    ids=lambda damage: damage.__name__,
)
def test_what_was_not_stored_so_is_named_and_not_given_out(damage: Callable[[GraphStore], None], tmp_path: Path) -> None:
    store = make(tmp_path)
    store.save(GRAPH, b"the executable of this graph")
    store.save("other", b"the executable of another graph")
    damage(store)
    with pytest.raises(ArtifactError) as caught:
        store.load(GRAPH)
    assert str(path_of(store)) in str(caught.value)
    assert store.load("other") == b"the executable of another graph"


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    """No single byte of a file can change without the load being refused or giving exactly what was stored."""
    store = make(tmp_path)
    store.save(GRAPH, b"machine\ncode", seconds=1.5)
    whole = path_of(store).read_bytes()
    for at in range(len(whole)):
        path_of(store).write_bytes(whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :])
        found: bytes | None = None
        with contextlib.suppress(ArtifactError):
            found = store.load(GRAPH)
        assert found in (None, b"machine\ncode"), at


def test_content_may_hold_any_bytes(tmp_path: Path) -> None:
    store = make(tmp_path)
    for content in (b"", b"\n", b"\n\n{}\n", bytes(range(256))):
        store.save(GRAPH, content)
        assert store.load(GRAPH) == content


@pytest.mark.parametrize("fail_at", [0, 1])
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
        store.save(GRAPH, b"content")
    monkeypatch.undo()
    assert store.load(GRAPH) is None
    assert not [name for name in files(store) if name.startswith(".")]
    store.save(GRAPH, b"content")
    assert store.load(GRAPH) == b"content"


def test_two_stores_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any file of one process's save is in place, another process saves the same graph with other bytes: one of them is there."""
    first, second = make(tmp_path), make(tmp_path)
    real = os.replace
    for moment in range(2):
        calls = iter(range(100))
        (first.directory / "manifest.json").unlink(missing_ok=True)

        def replace(source: str, target: str, calls: Iterator[int] = calls, moment: int = moment) -> None:
            if next(calls) == moment:
                monkeypatch.setattr(os, "replace", real)
                second.save(GRAPH, b"of the second process")
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        first.save(GRAPH, b"of the first")
        monkeypatch.setattr(os, "replace", real)
        assert first.load(GRAPH) == second.load(GRAPH) == b"of the first"


def test_threads_that_save_and_load_see_whole_files(tmp_path: Path) -> None:
    contents = [bytes([i]) * (1 << 16) for i in range(4)]
    wrong: list[object] = []

    def work(content: bytes) -> None:
        store = make(tmp_path)
        for _ in range(20):
            store.save(GRAPH, content)
            if (found := store.load(GRAPH)) not in contents:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    store = make(tmp_path)
    assert sorted(files(store)) == [f"{GRAPH}.xla", "manifest.json"]


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file, not a directory")
    store = make(tmp_path / "root")
    with pytest.raises(OSError, match="root"):
        store.save(GRAPH, b"content")


def test_a_place_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file, not a directory")
    with pytest.raises(ArtifactError, match="root"):
        make(tmp_path / "root").load(GRAPH)


def test_the_default_place_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLASERVE_COMPILE_CACHE", str(tmp_path / "named"))
    assert default_root() == tmp_path / "named"
    assert GraphStore(None, "m", KEY).directory.parent == tmp_path / "named"
    monkeypatch.delenv("XLASERVE_COMPILE_CACHE")
    checkout = Path(store_module.__file__).resolve().parents[2] / "compile_cache"
    assert default_root() == checkout
    monkeypatch.setattr(store_module, "__file__", str(tmp_path / "site-packages" / "xlaserve" / "buckets" / "store.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "xlaserve" / "compile_cache"
