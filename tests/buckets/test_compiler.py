"""Compiled graphs: kept and loaded again, updated in place, free of weights, and callable with nothing but their own shapes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.buckets import compiler as compiler_module
from xlaserve.buckets.compile_events import COMPILE_EVENTS
from xlaserve.buckets.compiler import Compiler, Graph, collect, store_key
from xlaserve.buckets.graphs import GraphSpec, lower
from xlaserve.buckets.ladder import BLANK, COPIES, COPY, SEAT, Bucket, ContextBucket, Ladder, UpkeepBucket, make_ladder
from xlaserve.buckets.layout import row_width
from xlaserve.buckets.store import GraphStore
from xlaserve.engine.batch import empty_batch
from xlaserve.engine.seating import seating
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.registry import model_config
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


def prepare(spec: GraphSpec, store: GraphStore | None, ladder: Ladder = LADDER) -> dict[Bucket | UpkeepBucket, Graph]:
    done: list[int] = []
    graphs = collect(Compiler(spec, device(), store, threads=2).start(ladder), lambda _graph, count: done.append(count))
    assert done == list(range(1, len(ladder.graphs) + 1))
    assert set(graphs) == set(ladder.graphs)
    return graphs


def make_store(root: Path, spec: GraphSpec) -> GraphStore:
    return GraphStore(root, "tiny", store_key(spec, {"name": "cpu"}))


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
    assert kept == {"manifest.json"} | {f"{b.name}.xla" for b in LADDER.graphs}


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
            kv, state, output = run(params, kv, state, batch)
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


@pytest.fixture
def compiled_before(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling gives what `setup` has compiled, at once."""

    @dataclass
    class Lowered:
        bucket: Bucket

        def compile(self) -> object:
            return setup.graphs[self.bucket].run

    monkeypatch.setattr(compiler_module, "lower", lambda _spec, bucket, _device: Lowered(bucket))


@pytest.mark.usefixtures("compiled_before")
@pytest.mark.parametrize("damage", ["flip", "truncate", "header", "not an executable"])
def test_a_damaged_file_is_compiled_again_with_a_note(damage: str, setup: Setup, tmp_path: Path) -> None:
    store = make_store(tmp_path, setup.spec)
    one = Ladder((), LADDER.generate[:1], 16)
    name = one.generate[0].name
    prepare(setup.spec, store, one)
    path = store.directory / f"{name}.xla"
    if damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "header":
        path.write_bytes(b"{" + path.read_bytes())
    else:
        store.save(name, b"whole, but no executable")
    graph = prepare(setup.spec, store, one)[one.generate[0]]
    assert graph.source == "compiled"
    assert graph.note is not None
    assert name in graph.note
    mended = prepare(setup.spec, store, one)[one.generate[0]]
    assert (mended.source, mended.note) == ("loaded", None)


@pytest.mark.usefixtures("compiled_before")
def test_a_store_that_cannot_be_written_is_a_note(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    graph = prepare(setup.spec, make_store(tmp_path / "file", setup.spec), Ladder((), LADDER.generate[:1], 16))[LADDER.generate[0]]
    assert graph.source == "compiled"
    assert graph.note is not None
    assert str(tmp_path / "file") in graph.note


@pytest.mark.usefixtures("compiled_before")
def test_without_a_store_everything_is_compiled(setup: Setup) -> None:
    graph = prepare(setup.spec, None, Ladder((), LADDER.generate[:1], 16))[LADDER.generate[0]]
    assert (graph.source, graph.note) == ("compiled", None)


def test_a_graph_that_does_not_compile_is_an_error(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiler_module, "lower", broken)
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

        def compile(self) -> object:
            seen[self.bucket.name] = held.family
            return None

    monkeypatch.setattr(compiler_module, "lower", lambda _spec, bucket, _device: Lowered(bucket))
    collect(Compiler(setup.spec, device(), None, 2, compiling).start(LADDER), lambda _graph, _done: None)
    assert seen == {bucket.name: bucket.name.partition("-")[0] if "-" in bucket.name else "upkeep" for bucket in LADDER.graphs}


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
    new_kv, new_state, _ = setup.graphs[bucket].run(params, kv, state, empty_batch(bucket, 2))
    assert all(a.is_deleted() for a in (*kv, *state))
    assert not any(p.is_deleted() for p in params)
    assert [a.unsafe_buffer_pointer() for a in (*new_kv, *new_state)] == at


def test_weights_are_arguments_and_not_in_the_graph(setup: Setup) -> None:
    """The lowered text holds no array constant of more than a few hundred numbers: the rotary frequencies are the largest."""
    for bucket in LADDER.buckets:
        text = lower(setup.spec, bucket, device()).as_text()
        sizes = [
            int(np.prod([int(d) for d in re.findall(r"(\d+)x", shape)])) for shape in re.findall(r"dense<[^>]*> : tensor<([^>]*)>", text)
        ]
        splats = re.findall(r'dense<(?:"0x[0-9A-F]+"|\[[^>]*\])> : tensor<([^>]*)>', text)
        largest = max((int(np.prod([int(d) for d in re.findall(r"(\d+)x", shape)])) for shape in splats), default=0)
        assert sizes, "the pattern must find constants at all"
        assert largest <= 256, bucket.name
        signature = text[: text.index("->")]
        assert signature.count("%arg") == len(setup.spec.parameters()) + len(setup.spec.kv()) + len(setup.spec.state()) + 1
    assert setup.store.directory.stat()
    sizes = {b.name: (setup.store.directory / f"{b.name}.xla").stat().st_size for b in LADDER.buckets}
    assert max(sizes.values()) < 1 << 20, "code alone is half of that"


def test_another_shape_is_an_error_and_not_a_compile(setup: Setup) -> None:
    bucket = LADDER.generate[0]
    params, kv, state = arguments(setup.spec)
    good = empty_batch(bucket, 2)
    before = COMPILE_EVENTS.count
    for batch in (np.concatenate((good, good)), good[:, :-1].copy(), good[0], good.astype(np.float32)):
        with pytest.raises(TypeError):
            setup.graphs[bucket].run(params, kv, state, batch)
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
    key = store_key(setup.spec, {"name": "cpu"})
    assert store_key(replace(setup.spec, **change), {"name": "cpu"}) != key
    assert store_key(replace(setup.spec, model=replace(setup.spec.model, norm_eps=0.5)), {"name": "cpu"}) != key
    assert store_key(setup.spec, {"name": "cpu", "cores": "2"}) != key
    assert store_key(setup.spec, {"name": "cpu"}) == key


def test_the_key_follows_xla_flags(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    key = store_key(setup.spec, {"name": "cpu"})
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert store_key(setup.spec, {"name": "cpu"}) != key


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
    package = Path(compiler_module.__file__).parents[1]
    copy = tmp_path / "xlaserve"
    for path in package.rglob("*.py"):
        target = copy / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(compiler_module, "__file__", str(copy / "buckets" / "compiler.py"))
    key = store_key(setup.spec, {})
    (copy / "engine" / "llm.py").write_text("# nothing\n")
    assert store_key(setup.spec, {}) == key
    with (copy / f"{module}.py").open("a") as file:
        file.write("\n# changed\n")
    assert store_key(setup.spec, {}) != key
