"""Compiled graphs: kept and loaded again by the load ladder, updated in place, free of weights, and callable with nothing but their own
shapes.
"""

from __future__ import annotations

import pickle
import re
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.buckets import _compat, executable, keys
from xlaserve.buckets import compiler as compiler_module
from xlaserve.buckets.compile_events import COMPILE_EVENTS
from xlaserve.buckets.compiler import Compiler, Graph, collect, export_all
from xlaserve.buckets.directories import load
from xlaserve.buckets.graphs import GraphSpec, entry, lower
from xlaserve.buckets.keys import machine_key, program_key
from xlaserve.buckets.ladder import BLANK, COPIES, COPY, SEAT, Bucket, ContextBucket, Ladder, UpkeepBucket, make_ladder
from xlaserve.buckets.layout import mask_width, row_width
from xlaserve.buckets.store import GraphStore
from xlaserve.buckets.targets import target_platform
from xlaserve.engine.batch import empty_batch
from xlaserve.engine.seating import seating
from xlaserve.errors import ArtifactError, CompileError
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.registry import model_config
from xlaserve.platforms.cpu import CPU
from xlaserve.sampling.params import SamplingParams
from xlaserve.sampling.scores import SCORE_WIDTH
from xlaserve.sampling.slot_state import SlotState

LADDER = make_ladder(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=16, block_size=16, static_width=False)


@dataclass
class Setup:
    """A tiny spec, its store, and what preparing its graphs gave."""

    spec: GraphSpec
    store: GraphStore
    graphs: dict[Bucket | UpkeepBucket, Graph]


def device() -> jax.Device:
    return jax.devices("cpu")[0]


def prepare(spec: GraphSpec, store: GraphStore | None, ladder: Ladder = LADDER, **options: Any) -> dict[Bucket | UpkeepBucket, Graph]:
    done: list[int] = []
    compiler = Compiler(spec, "cpu", [device()], store, threads=2, **options)
    graphs = collect(compiler.start(ladder), lambda _graph, count: done.append(count))
    assert done == list(range(1, len(ladder.graphs) + 1))
    assert set(graphs) == set(ladder.graphs)
    return graphs


def make_store(directory: Path, spec: GraphSpec, **machine: object) -> GraphStore:
    return GraphStore(directory, program_key(spec, "cpu"), machine_key(CPU) | machine)


@pytest.fixture(scope="module")
def setup(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Setup:
    checkpoint = open_checkpoint(tiny_model("llama2"))
    model = model_config(checkpoint.config)
    checkpoint.close()
    spec = GraphSpec(replace(model, layers=model.layers[:1]), "float32", 9, 16, 2, "tiled", True, "sort")
    store = make_store(tmp_path_factory.mktemp("store"), spec)
    return Setup(spec, store, prepare(spec, store))


def arguments(spec: GraphSpec) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    params = tuple(jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype) for p in spec.parameters().values())
    return params, tuple(jnp.zeros(a.shape, a.dtype) for a in spec.kv()), zeros(spec)


def zeros(spec: GraphSpec) -> SlotState:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), spec.state())


def test_the_first_preparation_compiles_and_keeps(setup: Setup) -> None:
    assert {graph.source for graph in setup.graphs.values()} == {"compiled"}
    assert {graph.note for graph in setup.graphs.values()} == {None}
    kept = {path.name for path in setup.store.directory.iterdir()}
    [machine] = load(setup.store.directory).machines
    files = {name for b in LADDER.graphs for name in (f"{b.name}.stablehlo", f"{b.name}.{machine}.xla")}
    assert kept == {"manifest.json", "locks"} | files


def test_the_second_preparation_loads_and_compiles_nothing(setup: Setup) -> None:
    before = COMPILE_EVENTS.count
    graphs = prepare(setup.spec, setup.store)
    assert COMPILE_EVENTS.count == before
    assert {graph.source for graph in graphs.values()} == {"loaded"}
    for bucket in LADDER.buckets:
        results = []
        for run in (setup.graphs[bucket].run, graphs[bucket].run):
            params, kv, state = arguments(setup.spec)
            batch = empty_batch(bucket, 2)
            batch[0, 0] = 1
            batch[0, row_width(bucket) - bucket.width] = 3
            kv, state, output = run(params, kv, state, batch, mask(bucket, setup))
            results.append([np.asarray(x) for x in (*kv, *state, *output)])
        assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True)), bucket.name
    seatings = seating(
        SimpleNamespace(slot=1, params=SamplingParams(repetition_penalty=2), prompt_ids=[3], output_ids=[], bad_words=()), 512
    )  # type: ignore[arg-type]
    seated = [[np.asarray(x) for x in run(zeros(setup.spec), *seatings)] for run in (setup.graphs[SEAT].run, graphs[SEAT].run)]
    assert all(np.array_equal(a, b) for a, b in zip(*seated, strict=True))
    assert seated[0][1][1, 3] == 1
    # The runs above compiled nothing either, apart from the arguments made here.
    assert COMPILE_EVENTS.count >= before


def test_compile_events_count_what_xla_compiles() -> None:
    before = COMPILE_EVENTS.count
    jax.jit(lambda x: x * 3 + 1).lower(jax.ShapeDtypeStruct((7,), jnp.int32)).compile()
    assert COMPILE_EVENTS.count == before + 1


ONE = Ladder((), LADDER.generate[:1], 16)
GENERATE = ONE.generate[0]


@pytest.fixture
def compiled_before(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling gives what `setup` has compiled, at once; StableHLO is checked as ever."""
    real = compiler_module.lower_portable

    def lower_portable(content: bytes, spec: GraphSpec, bucket: Bucket, device: object) -> object:
        real(content, spec, bucket, device)
        return SimpleNamespace(compile=lambda **_: setup.graphs[bucket].run)

    monkeypatch.setattr(compiler_module, "lower_portable", lower_portable)


def a_copy(setup: Setup, directory: Path, **machine: object) -> GraphStore:
    """The graphs of `setup` in a directory of their own, as a machine with other facts sees them."""
    shutil.copytree(setup.store.directory, directory)
    return make_store(directory, setup.spec, **machine)


def executable_path(store: GraphStore, bucket: Bucket = GENERATE) -> Path:
    [path] = store.directory.glob(f"{bucket.name}.*.xla")
    return path


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.usefixtures("compiled_before")
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_executable_is_compiled_from_stablehlo_with_a_note(damage: Callable[[Path], None], setup: Setup, tmp_path: Path) -> None:
    store = a_copy(setup, tmp_path / "a")
    damage(executable_path(store))
    graphs = prepare(setup.spec, store, ONE)
    graph = graphs[GENERATE]
    assert graph.source == "compiled from StableHLO"
    assert graph.note is not None
    assert graph.note.startswith(f"{store.directory / GENERATE.name}.")
    assert {graphs[SEAT].source, graphs[COPY].source} == {"loaded"}
    mended = prepare(setup.spec, store, ONE)[GENERATE]
    assert (mended.source, mended.note, mended.digest) == ("loaded", None, graph.digest)


@pytest.mark.usefixtures("compiled_before")
@pytest.mark.parametrize("content", [b"whole, but no executable", b"", b"cos\nsystem\n(S'false'\ntR."])
def test_bytes_that_the_client_does_not_take_are_a_note(content: bytes, setup: Setup, tmp_path: Path) -> None:
    store = a_copy(setup, tmp_path / "a")
    store.save(GENERATE.name, executable=content)
    graph = prepare(setup.spec, store, ONE)[GENERATE]
    assert graph.source == "compiled from StableHLO"
    assert graph.note is not None
    assert graph.note.startswith(f"{GENERATE.name}: stored executable: the platform does not load it")


@pytest.mark.usefixtures("compiled_before")
def test_another_graphs_executable_is_not_run(setup: Setup, tmp_path: Path) -> None:
    store = a_copy(setup, tmp_path / "a")
    store.save(GENERATE.name, executable=store.executable(SEAT.name))
    graph = prepare(setup.spec, store, ONE)[GENERATE]
    assert graph.note is not None
    assert "it is another graph's: its arguments are not this graph's (10 there, " in graph.note


@pytest.mark.usefixtures("compiled_before")
@pytest.mark.parametrize("case", ["damaged", "no StableHLO", "another graph's", "another platform's"])
def test_stablehlo_that_cannot_be_used_is_traced_again_with_a_note(case: str, setup: Setup, tmp_path: Path) -> None:
    store = a_copy(setup, tmp_path / "a")
    executable_path(store).unlink()
    if case == "damaged":
        flip(store.directory / f"{GENERATE.name}.stablehlo")
        wanted = "sha256"
    elif case == "no StableHLO":
        store.save(GENERATE.name, stablehlo=b"whole, but no StableHLO")
        wanted = f"{GENERATE.name}: stored StableHLO: it is none that JAX"
    elif case == "another graph's":
        store.save(GENERATE.name, stablehlo=store.stablehlo(SEAT.name))
        wanted = f"{GENERATE.name}: stored StableHLO: its arguments are not this graph's"
    else:
        store.save(GENERATE.name, stablehlo=compiler_module.export(setup.spec, GENERATE, "cuda"))
        wanted = f"{GENERATE.name}: stored StableHLO: JAX does not take it"
    graph = prepare(setup.spec, store, ONE)[GENERATE]
    assert graph.source == "compiled"
    assert graph.note is not None
    assert wanted in graph.note
    assert "\n" not in graph.note
    mended = prepare(setup.spec, store, ONE)[GENERATE]
    assert (mended.source, mended.note) == ("loaded", None)


def test_stablehlo_that_the_compiler_refuses_is_traced_again(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = a_copy(setup, tmp_path / "a", cores="1000")
    monkeypatch.setattr(compiler_module, "export", lambda *_: b"traced now")

    def lower_portable(content: bytes, _spec: GraphSpec, bucket: Bucket, _device: object) -> object:
        def refused(**_: object) -> object:
            raise RuntimeError("unknown op\nat line 1")

        return SimpleNamespace(compile=(lambda **_: setup.graphs[bucket].run) if content == b"traced now" else refused)

    monkeypatch.setattr(compiler_module, "lower_portable", lower_portable)
    for graph in prepare(setup.spec, store, ONE).values():
        assert (graph.source, graph.note) == ("compiled", f"{graph.bucket.name}: stored StableHLO: does not compile: unknown op")


def test_what_the_compiler_refuses_is_named(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> object:
        raise RuntimeError("INTERNAL: no such op\nat line 1")

    monkeypatch.setattr(compiler_module, "lower_portable", lambda *_: SimpleNamespace(compile=refused))
    with pytest.raises(CompileError, match=r"^Graph \S+ does not compile for cpu: INTERNAL: no such op\nat line 1$"):
        prepare(setup.spec, make_store(tmp_path / "a", setup.spec), ONE)


@pytest.mark.usefixtures("compiled_before")
def test_another_machine_compiles_from_stablehlo_and_keeps_its_own(setup: Setup, tmp_path: Path) -> None:
    store = a_copy(setup, tmp_path / "a", cores="1000")
    graph = prepare(setup.spec, store, ONE)[GENERATE]
    assert (graph.source, graph.note) == ("compiled from StableHLO", None)
    assert {g.source for g in prepare(setup.spec, store, ONE).values()} == {"loaded"}
    assert {g.source for g in prepare(setup.spec, make_store(tmp_path / "a", setup.spec), ONE).values()} == {"loaded"}
    assert len(load(store.directory).machines) == 2


@pytest.mark.usefixtures("compiled_before")
def test_artifacts_come_before_the_cache_and_are_only_read(setup: Setup, tmp_path: Path) -> None:
    artifacts, cache = a_copy(setup, tmp_path / "a"), make_store(tmp_path / "cache", setup.spec)
    executable_path(artifacts).unlink()
    before = {path: path.stat().st_mtime_ns for path in artifacts.directory.rglob("*")}
    graphs = prepare(setup.spec, cache, ONE, artifacts=artifacts)
    assert (graphs[GENERATE].source, graphs[SEAT].source) == ("compiled from StableHLO", "loaded")
    again = prepare(setup.spec, cache, ONE, artifacts=artifacts)
    assert {g.source for g in again.values()} == {"loaded"}
    assert again[GENERATE].note is not None, "what is wrong with the artifacts is said at each start"
    assert {path: path.stat().st_mtime_ns for path in artifacts.directory.rglob("*")} == before


def test_artifacts_only_loads_or_says_which_graph_and_why(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> object:
        raise AssertionError("compiles")

    monkeypatch.setattr(compiler_module, "lower_portable", forbidden)
    monkeypatch.setattr(compiler_module, "export", forbidden)
    cache, artifacts = make_store(tmp_path / "cache", setup.spec), a_copy(setup, tmp_path / "a")
    assert {g.source for g in prepare(setup.spec, cache, ONE, artifacts=artifacts, only=True).values()} == {"loaded"}
    for store, wanted in (
        (make_store(tmp_path / "a", setup.spec, jaxlib="1"), r"jaxlib: 1 here, \S+ in the artifact"),
        (make_store(tmp_path / "nothing", setup.spec), "nothing is kept there yet"),
    ):
        with pytest.raises(ArtifactError, match=rf"Graph \S+ would have to be compiled, and --artifacts-only .*{wanted}"):
            prepare(setup.spec, cache, ONE, artifacts=store, only=True)
    flip(executable_path(artifacts))
    with pytest.raises(ArtifactError, match=rf"Graph {GENERATE.name} would .*its sha256 is not the recorded one"):
        prepare(setup.spec, cache, ONE, artifacts=artifacts, only=True)


def test_engines_that_start_together_compile_each_graph_once(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find an empty directory; each graph is made by whoever comes first while the other waits, and loads it then."""
    made: list[str] = []
    both = threading.Barrier(2, timeout=60)

    def make(_content: bytes, _spec: GraphSpec, bucket: Bucket, _device: object) -> object:
        made.append(bucket.name)
        return SimpleNamespace(compile=lambda **_: setup.graphs[bucket].run)

    class Store(GraphStore):
        def verdict(self) -> Any:
            found = super().verdict()
            both.wait()
            return found

    monkeypatch.setattr(compiler_module, "lower_portable", make)
    monkeypatch.setattr(compiler_module, "export", lambda *_: b"text")
    machine = machine_key(CPU)
    found: list[dict[Any, Graph]] = []

    def start() -> None:
        found.append(prepare(setup.spec, Store(tmp_path / "a", program_key(setup.spec, "cpu"), machine), ONE))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(b.name for b in ONE.graphs)
    for bucket in ONE.graphs:
        assert sorted(graphs[bucket].source for graphs in found) == ["compiled", "loaded"]
    assert found[0][GENERATE].digest == found[1][GENERATE].digest


def test_loading_reads_no_pickle(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_args: object, **_options: object) -> object:
        raise AssertionError("unpickles")

    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert {g.source for g in prepare(setup.spec, setup.store, ONE).values()} == {"loaded"}


def test_results_are_what_graphs_give(setup: Setup) -> None:
    """Loading relies on shapes that nobody traces."""
    others = ({"branches": False, "attention": "gather"}, {"tensor_parallel_size": 4})
    for spec in (setup.spec, *(replace(setup.spec, **other) for other in others)):
        for bucket in LADDER.graphs:
            function, arguments, told, _ = entry(spec, bucket)
            traced = jax.eval_shape(function, *arguments)
            assert jax.tree.structure(told) == jax.tree.structure(traced)
            assert [(a.shape, a.dtype) for a in jax.tree.leaves(told)] == [(a.shape, a.dtype) for a in jax.tree.leaves(traced)]


def test_jax_still_builds_executables_of_the_fields_that_are_known(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """`xlaserve.buckets._compat` knows the fields of one private class of JAX; one that it does not know must be an error that says so."""
    from jax._src.interpreters import pxla

    graph = entry(setup.spec, SEAT)
    content = setup.store.executable(SEAT.name)
    assert content is not None
    assert executable.load("seat", content, graph.arguments, graph.results, [device()])
    real = fields(pxla.UnloadedMeshExecutable)
    monkeypatch.setattr(_compat, "fields", lambda _class: (*real, SimpleNamespace(name="new_field")))
    with pytest.raises(ArtifactError, match=r"builds executables in a way that xlaserve does not know: it asks for new_field"):
        executable.load("seat", content, graph.arguments, graph.results, [device()])


def test_a_loaded_graph_is_dispatched_by_the_fast_path(setup: Setup) -> None:
    """JAX calls `Compiled.call` once, then its C++ path; a graph that stays in Python is slow and shows here."""
    content = setup.store.executable(COPY.name)
    assert content is not None
    graph = entry(setup.spec, COPY)
    run = executable.load("copy", content, graph.arguments, graph.results, [device()])
    kv = tuple(jnp.zeros(a.shape, a.dtype) for a in setup.spec.kv())
    blocks = np.zeros((2, COPIES), np.int32)
    for _ in range(2):  # arguments that have no place yet, then arguments that were results
        kv = run(kv, *blocks)
    calls: list[object] = []
    sys.setprofile(lambda frame, event, _arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        kv = run(kv, *blocks)
    finally:
        sys.setprofile(None)
    assert "call" not in calls[2:], calls
    assert len(calls) < 10, calls


@pytest.mark.parametrize("jax_name", ["cuda", "neuron"])
def test_graphs_of_an_absent_platform_are_kept_as_stablehlo(jax_name: str, setup: Setup, tmp_path: Path) -> None:
    spec = replace(setup.spec, dtype="bfloat16", branches=jax_name == "cuda", attention="tiled" if jax_name == "cuda" else "gather")
    platform = target_platform(None, {"cuda": "h100", "neuron": "trn2"}[jax_name])
    store = GraphStore(tmp_path / "a", program_key(spec, jax_name), machine_key(platform))
    names: list[str] = []
    export_all(spec, jax_name, ONE, store, lambda name, _done: names.append(name))
    assert names == [b.name for b in ONE.graphs]
    assert str(store.verdict()) == "executables miss (holds no executables); StableHLO hit"
    exported = jax.export.deserialize(bytearray(store.stablehlo(GENERATE.name) or b""))
    assert exported.platforms == (jax_name,)


@pytest.mark.usefixtures("compiled_before")
def test_a_store_that_cannot_be_written_is_a_note(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    graph = prepare(setup.spec, make_store(tmp_path / "file", setup.spec), ONE)[GENERATE]
    assert graph.source == "compiled"
    assert graph.note is not None
    assert str(tmp_path / "file") in graph.note


@pytest.mark.usefixtures("compiled_before")
def test_without_a_store_everything_is_compiled(setup: Setup) -> None:
    graph = prepare(setup.spec, None, ONE)[GENERATE]
    assert (graph.source, graph.note) == ("compiled", None)


def test_a_graph_that_does_not_compile_is_an_error(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiler_module, "export", broken)
    with pytest.raises(RuntimeError, match="no such instruction"):
        prepare(setup.spec, None)


def test_each_family_is_compiled_under_its_own_conditions(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    held = threading.local()

    @contextmanager
    def compiling(family: str) -> Generator[None]:
        held.family = family
        yield
        held.family = None

    class Lowered:
        def __init__(self, bucket: Bucket | UpkeepBucket) -> None:
            self.bucket = bucket

        def compile(self, **_: object) -> Lowered:
            seen[self.bucket.name] = held.family
            return self

        def memory_analysis(self) -> None:
            """Some platforms have none."""

    monkeypatch.setattr(compiler_module, "export", lambda _spec, _bucket, _name: b"")
    monkeypatch.setattr(compiler_module, "lower_portable", lambda _content, _spec, bucket, _device: Lowered(bucket))
    collect(Compiler(setup.spec, "cpu", [device()], None, threads=2, compiling=compiling).start(LADDER), lambda _graph, _done: None)
    assert seen == {bucket.name: bucket.name.partition("-")[0] if "-" in bucket.name else "upkeep" for bucket in LADDER.graphs}


def mask(bucket: Bucket, setup: Setup) -> Any:
    """All tokens allowed."""
    return np.full((bucket.rows, mask_width(setup.spec.model.vocab_size)), -1, np.int32)


def size(arrays: Iterable[Any]) -> int:
    return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in arrays)


def test_a_slot_is_loaded_in_place(setup: Setup) -> None:
    analysis = setup.graphs[SEAT].run.memory_analysis()  # type: ignore[attr-defined]
    assert analysis.alias_size_in_bytes == size(setup.spec.state())
    assert analysis.temp_size_in_bytes < size([setup.spec.state().seen])


def test_blank_is_all_zeros_of_the_right_shapes_and_makes_nothing_else(setup: Setup) -> None:
    analysis = setup.graphs[BLANK].run.memory_analysis()  # type: ignore[attr-defined]
    held = [*setup.spec.kv(), *setup.spec.state()]
    assert analysis.temp_size_in_bytes == 0
    assert analysis.output_size_in_bytes <= size(held) + 8 * (len(held) + 1)
    before = COMPILE_EVENTS.count
    loaded = prepare(setup.spec, setup.store)[BLANK]
    for graph in (setup.graphs[BLANK], loaded):
        kv, state = graph.run()
        assert isinstance(state, SlotState)
        assert [(a.shape, a.dtype, a.device) for a in (*kv, *state)] == [(a.shape, a.dtype, device()) for a in held]
        assert not any(np.asarray(array).any() for array in (*kv, *state))
    assert COMPILE_EVENTS.count == before


def test_blocks_are_copied_in_place(setup: Setup) -> None:
    analysis = setup.graphs[COPY].run.memory_analysis()  # type: ignore[attr-defined]
    assert analysis.alias_size_in_bytes == size(setup.spec.kv())
    rng = np.random.default_rng(0)
    kv = [rng.normal(size=array.shape).astype(array.dtype) for array in setup.spec.kv()]
    source, target = np.zeros((2, COPIES), np.int32)
    source[:2], target[:2] = (3, 3), (1, 4)
    copied = setup.graphs[COPY].run(tuple(jnp.asarray(array) for array in kv), source, target)
    for before, after in zip(kv, copied, strict=True):
        expected = before.copy()
        expected[[1, 4]] = before[3]
        np.testing.assert_array_equal(np.asarray(after), expected)


def test_kv_and_state_are_updated_in_place_in_every_graph(setup: Setup) -> None:
    held = [*setup.spec.kv(), *setup.spec.state()]
    wanted = size(held)
    for bucket in LADDER.buckets:
        analysis = setup.graphs[bucket].run.memory_analysis()  # type: ignore[attr-defined]
        assert analysis.alias_size_in_bytes == wanted, bucket.name
        # What is not aliased is the sampled tokens and the scores (and the pointers of the result tuple).
        pointers = 8 * (len(held) + 3)
        scored = bucket.rows + (bucket.tokens if isinstance(bucket, ContextBucket) else 0)
        assert analysis.output_size_in_bytes - wanted <= bucket.rows * 4 + scored * 4 * SCORE_WIDTH + pointers, bucket.name


def test_old_kv_is_gone_after_a_step(setup: Setup) -> None:
    bucket = LADDER.generate[0]
    params, kv, state = arguments(setup.spec)
    at = [a.unsafe_buffer_pointer() for a in (*kv, *state)]
    new_kv, new_state, _ = setup.graphs[bucket].run(params, kv, state, empty_batch(bucket, 2), mask(bucket, setup))
    assert all(a.is_deleted() for a in (*kv, *state))
    assert not any(p.is_deleted() for p in params)
    assert [a.unsafe_buffer_pointer() for a in (*new_kv, *new_state)] == at


def test_weights_are_arguments_and_not_in_the_graph(setup: Setup) -> None:
    """The lowered text holds no array constant of more than a few hundred numbers: the rotary frequencies are the largest."""
    for bucket in LADDER.buckets:
        text = lower(setup.spec, bucket, [device()]).as_text()
        sizes = [
            int(np.prod([int(d) for d in re.findall(r"(\d+)x", shape)])) for shape in re.findall(r"dense<[^>]*> : tensor<([^>]*)>", text)
        ]
        splats = re.findall(r'dense<(?:"0x[0-9A-F]+"|\[[^>]*\])> : tensor<([^>]*)>', text)
        largest = max((int(np.prod([int(d) for d in re.findall(r"(\d+)x", shape)])) for shape in splats), default=0)
        assert sizes, "the pattern must find constants at all"
        assert largest <= 256, bucket.name
        signature = text[: text.index("->")]
        assert signature.count("%arg") == len(setup.spec.parameters()) + len(setup.spec.kv()) + len(setup.spec.state()) + 2
    assert setup.store.directory.stat()
    sizes = {b.name: executable_path(setup.store, b).stat().st_size for b in LADDER.buckets}
    assert max(sizes.values()) < 1 << 20, "code alone is half of that"


def test_another_shape_is_an_error_and_not_a_compile(setup: Setup) -> None:
    bucket = LADDER.generate[0]
    params, kv, state = arguments(setup.spec)
    good = empty_batch(bucket, 2)
    before = COMPILE_EVENTS.count
    for batch in (np.concatenate((good, good)), good[:, :-1].copy(), good[0], good.astype(np.float32)):
        with pytest.raises(TypeError):
            setup.graphs[bucket].run(params, kv, state, batch, mask(bucket, setup))
    assert COMPILE_EVENTS.count == before
    assert not kv[0].is_deleted()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"num_blocks": 10},
        {"block_size": 32},
        {"max_num_seqs": 3},
        {"attention": "gather"},
        {"branches": False},
        {"top_k": "neuron"},
    ],
)
def test_the_key_follows_the_spec(change: dict[str, Any], setup: Setup) -> None:
    key = program_key(setup.spec, "cpu")
    assert program_key(replace(setup.spec, **change), "cpu") != key
    assert program_key(replace(setup.spec, model=replace(setup.spec.model, norm_eps=0.5)), "cpu") != key
    assert program_key(setup.spec, "cuda") != key
    assert program_key(setup.spec, "cpu") == key


def test_the_machine_key_follows_versions_flags_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    key = machine_key(CPU)
    assert {"jax", "jaxlib", "flax", "device_kind", "platform_version", "cores", "cpu_features", "xla_flags"} <= key.keys()
    assert isinstance(key["cpu_features"], list)
    assert machine_key(CPU) == key
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert machine_key(CPU) == key | {"xla_flags": "--xla_cpu_enable_fast_math=true"}


@pytest.mark.parametrize(
    "module",
    [
        "buckets/graphs",
        "buckets/layout",
        "models/layers",
        "models/decoder",
        "models/config",
        "paged/attention",
        "sampling/sampler",
        "sampling/params",
    ],
)
def test_the_key_follows_the_code_of_graphs(module: str, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing one letter in any module that graphs are traced from changes the key; changing others does not."""
    package = Path(keys.__file__).parents[1]
    copy = tmp_path / "xlaserve"
    for path in package.rglob("*.py"):
        target = copy / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(keys, "__file__", str(copy / "buckets" / "keys.py"))
    key = program_key(setup.spec, "cpu")
    (copy / "engine" / "llm.py").write_text("# nothing\n")
    assert program_key(setup.spec, "cpu") == key
    with (copy / f"{module}.py").open("a") as file:
        file.write("\n# changed\n")
    assert program_key(setup.spec, "cpu") != key
