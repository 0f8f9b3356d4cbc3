"""What a compiler has measured: kept with the graphs, found again, checked, taken where nothing can be measured, gone with its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.buckets.damages import SPEC
from xlaserve.buckets import compiler as compiler_module
from xlaserve.buckets import directories
from xlaserve.buckets.compiler import Compiler, Graph, collect
from xlaserve.buckets.ladder import Bucket, UpkeepBucket, make_ladder
from xlaserve.buckets.store import TUNING, GraphStore
from xlaserve.buckets.targets import target_platform
from xlaserve.buckets.tuning import TuningFolder, decode_results, encode_results
from xlaserve.cli import main
from xlaserve.errors import ArtifactError
from xlaserve.platforms.cuda import CUDA
from xlaserve.platforms.platform import Autotuning

CARD = "699b92c0fb30cb16"
HOW = Autotuning("results_in", (("complete", True),), (("library", True),), "products go to a library")
LADDER = make_ladder(max_model_len=32, max_num_seqs=1, max_num_batched_tokens=16, block_size=16, static_width=False)
NAMES = [bucket.name for bucket in LADDER.graphs]


@dataclass
class Xla:
    """A compiler that looks for a result of each graph where the option says, and measures and keeps one where it may."""

    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: list[str] = field(default_factory=list)

    def lower(self, bucket: Bucket | UpkeepBucket) -> Lowered:
        return Lowered(self, bucket.name)


@dataclass
class Lowered:
    xla: Xla
    name: str

    def compile(self, compiler_options: dict[str, Any]) -> Lowered:
        self.xla.options[self.name] = compiler_options
        if "results_in" in compiler_options:
            result = Path(compiler_options["results_in"]) / CARD / f"{self.name}.pb"
            if not result.exists():
                if "complete" in compiler_options:
                    raise RuntimeError(f"no result of {self.name}\nand more")
                self.xla.measured.append(self.name)
                result.parent.mkdir(exist_ok=True)
                result.write_bytes(self.name.encode())
                (result.parent / ".tmp_unfinished").write_bytes(b"")
        return self

    def memory_analysis(self) -> None:
        """Some platforms have none."""


@pytest.fixture
def xla(monkeypatch: pytest.MonkeyPatch) -> Xla:
    def serialize(_compiled: object) -> bytes:
        raise ArtifactError("no executables here")

    made = Xla()
    monkeypatch.setattr(compiler_module.pjrt, "serialize", serialize)
    monkeypatch.setattr(compiler_module, "export", lambda _spec, _bucket, _name: b"")
    monkeypatch.setattr(compiler_module, "lower_portable", lambda _content, _spec, bucket, _device: made.lower(bucket))
    return made


def store_at(directory: Path, program: str = "a") -> GraphStore:
    return GraphStore(directory, {"program": program}, {"machine": 1})


def compile_all(store: GraphStore | None, *, here: bool = True, artifacts: GraphStore | None = None) -> list[Graph]:
    devices = jax.devices("cpu")[:1]
    compiler = Compiler(SPEC, "cpu", devices, store, artifacts=artifacts, threads=2, options={"own": True}, autotuning=HOW, here=here)
    return list(collect(compiler.start(LADDER), lambda _graph, _done: None).values())


def test_what_was_measured_is_kept_and_not_measured_again(xla: Xla, tmp_path: Path) -> None:
    store = store_at(tmp_path / "a")
    compile_all(store)
    assert sorted(xla.measured) == sorted(NAMES)
    assert store.tuning() == {f"{CARD}/{name}.pb": name.encode() for name in NAMES}
    assert directories.verify(store.directory).damaged == directories.verify(store.directory).unlisted == ()
    assert directories.tuning(store.directory) == store.tuning()
    xla.measured.clear()
    compile_all(store_at(tmp_path / "b"), artifacts=store)
    assert xla.measured == [], "the artifacts had them"
    assert all(options["own"] and "library" not in options for options in xla.options.values())


@pytest.mark.usefixtures("xla")
def test_a_folder_of_results_is_gone_with_what_has_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    compile_all(None)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_without_the_device_the_library_chooses_what_nobody_has_measured(xla: Xla, tmp_path: Path) -> None:
    graphs = compile_all(store_at(tmp_path / "a"), here=False)
    assert all(options == {"own": True, "library": True} for options in xla.options.values())
    assert xla.measured == []
    assert store_at(tmp_path / "a").tuning() == {}
    assert not any("tuning" in (graph.note or "") for graph in graphs)


def test_without_the_device_what_was_measured_elsewhere_is_taken(xla: Xla, tmp_path: Path) -> None:
    compile_all(card := store_at(tmp_path / "card"))
    missing, *others = NAMES
    store = store_at(tmp_path / "a", "b")
    results = directories.tuning(card.directory)
    store.save_tuning({name: content for name, content in results.items() if missing not in name})
    xla.options.clear()
    graphs = {graph.bucket.name: graph for graph in compile_all(store, here=False)}
    assert all(xla.options[name]["complete"] and "library" not in xla.options[name] for name in others)
    assert xla.options[missing] == {"own": True, "library": True}
    note = f"tuning is not of all its kernels: products go to a library (no result of {missing})"
    assert note in (graphs[missing].note or "")
    assert not any("tuning" in (graphs[name].note or "") for name in others)


def test_damaged_results_are_named_and_measured_again(xla: Xla, tmp_path: Path) -> None:
    store = store_at(tmp_path / "a")
    store.save_tuning({f"{CARD}/old.pb": b"1"})
    content = (store.directory / TUNING).read_bytes()
    (store.directory / TUNING).write_bytes(content[:-1] + b"2")
    assert directories.verify(store.directory).damaged == (f"{TUNING}: its sha256 is not the recorded one",)
    with pytest.raises(ArtifactError, match=rf"{TUNING}: its sha256 is not the recorded one"):
        directories.tuning(store.directory)
    graphs = compile_all(store)
    assert sum(TUNING in (graph.note or "") for graph in graphs) == 1
    assert sorted(xla.measured) == sorted(NAMES)
    assert store.tuning().keys() == {f"{CARD}/{name}.pb" for name in NAMES}
    assert directories.remove(store.directory) == []


def test_results_of_other_runs_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = store_at(tmp_path / "a")
    store.save_tuning({"a.pb": b"1", "b.pb": b"1"})
    store.save_tuning({"b.pb": b"2", "c/d.pb": b"2"})
    assert store.tuning() == {"a.pb": b"1", "b.pb": b"2", "c/d.pb": b"2"}
    assert main(["artifacts", "show", str(store.directory)]) == 0
    assert "tuning: 3 kernels as they were measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../a.pb", "/a.pb", "a/../b.pb", ".a.pb", "a//b.pb", "", "a\\b", "a/b/c/d/e.pb"])
def test_names_stay_within_the_folder(name: str) -> None:
    with pytest.raises(ArtifactError, match="a tuning result by the name of"):
        decode_results(encode_results({name: b""}))


def test_other_content_is_refused() -> None:
    for content in (b"", b"text", encode_results({"a.pb": b"1"})[:-1]):
        with pytest.raises(ArtifactError, match="is no collection of tuning results"):
            decode_results(content)


def test_added_results_are_told_once() -> None:
    folder = TuningFolder({"a/b.pb": b"1"})
    assert (folder.path / "a" / "b.pb").read_bytes() == b"1"
    assert folder.added() == {}
    (folder.path / "c.pb").write_bytes(b"2")
    assert folder.added() == {"c.pb": b"2"}
    assert folder.added() == {}
    assert len(folder) == 2


def test_results_are_for_platforms_that_measure(
    tmp_path: Path, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", str(tiny_model("llama2")), "-o", str(tmp_path / "a"), "--max-model-len", "32", "--tuning", str(tmp_path)]
    assert main([*command, "--device", "cpu"]) != 0
    assert "tuning: the compiler for the platform cpu measures no kernels: leave out --tuning." in capsys.readouterr().err
    store_at(tmp_path / "none").save("graph", stablehlo=b"")
    given = [*command[:-1], str(tmp_path / "none")]
    assert main([*given, "--device", "cuda", "--target", "h100"]) != 0
    assert "none: holds no results of tuning; `xlaserve compile` makes them on a machine with the card" in capsys.readouterr().err


def test_the_card_says_how_it_is_told() -> None:
    how = CUDA.autotuning
    assert how is not None
    assert not {name for name, _ in (*how.complete, *how.without)} & {name for name, _ in CUDA.compiler_options}
    assert CUDA.here
    assert not target_platform("cuda", "h100").here


def test_xla_takes_what_the_card_is_told(tmp_path: Path) -> None:
    """Names and types of options, which every build of XLA checks."""
    how = CUDA.autotuning
    assert how is not None
    options: dict[str, str | bool] = {
        **dict(CUDA.compiler_options),
        **dict(how.complete),
        **dict(how.without),
        how.directory: str(tmp_path),
    }
    jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((3,), "float32")).compile(compiler_options=options)
    with pytest.raises(RuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((3,), "float32")).compile(compiler_options={"xla_gpu_no_such": True})
