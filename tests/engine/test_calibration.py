"""Costs of graphs: measured once for a store, kept while its graphs stay what they are, and never a reason not to start."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import TINY_ENGINE
from xlaserve.buckets.compile_events import COMPILE_EVENTS
from xlaserve.buckets.ladder import Bucket, ContextBucket, Ladder, make_ladder
from xlaserve.buckets.layout import Header
from xlaserve.buckets.store import GraphStore
from xlaserve.engine.artifacts import Stores
from xlaserve.engine.batch import Batch
from xlaserve.engine.build import compile_graphs, make_plan, measure_costs, open_stores
from xlaserve.engine.calibration import calibrate
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.runner import Runner
from xlaserve.models.dummy_weights import DummyWeights

LADDER = make_ladder(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=32, block_size=16, static_width=False)


def store_at(root: Path) -> GraphStore:
    return GraphStore(root / "a", {"dtype": "float32"}, {"jax": "1"})


def executables(ladder: Ladder = LADDER, **made_anew: str) -> dict[str, str]:
    """What tells the executables of `ladder` apart."""
    return {bucket.name: f"digest of {bucket.name}" for bucket in ladder.buckets} | made_anew


@dataclass
class Device:
    """Gives every bucket a cost that it gives no other time."""

    ladder: Ladder = LADDER
    runs: int = 0
    lines: list[str] = field(default_factory=list)

    def measure(self) -> dict[Bucket, int]:
        self.runs += 1
        return {bucket: 1000 * self.runs + place for place, bucket in enumerate(self.ladder.buckets, start=1)}

    def calibrate(self, *stores: GraphStore, **made_anew: str) -> Ladder:
        found = calibrate(self.ladder, stores, executables(self.ladder, **made_anew), self.measure, self.lines.append)
        assert (found.context, found.generate, found.block_size) == (self.ladder.context, self.ladder.generate, self.ladder.block_size)
        assert found.costs.keys() == set(self.ladder.buckets)
        return found


def costs_files(store: GraphStore) -> list[Path]:
    return list(store.directory.glob("costs-*.json"))


def test_costs_are_measured_once_for_a_store(tmp_path: Path) -> None:
    device, other = Device(), Device(runs=7)
    first = device.calibrate(store_at(tmp_path))
    assert min(first.costs.values()) > 1000
    again = store_at(tmp_path)
    assert device.calibrate(again) == other.calibrate(again) == first
    assert (device.runs, other.runs) == (1, 7)
    assert "measured in 0.0 s" in device.lines[0]
    assert device.lines[1:] == other.lines == [f"costs of {len(LADDER.buckets)} graphs are known"]


def test_a_graph_that_was_compiled_anew_is_measured_again(tmp_path: Path) -> None:
    store, device = store_at(tmp_path), Device()
    first = device.calibrate(store)
    assert device.calibrate(store, **{LADDER.buckets[0].name: "another digest"}).costs != first.costs
    assert device.runs == 2
    assert device.calibrate(store) == first


def test_costs_are_looked_for_in_all_places_and_kept_in_the_last(tmp_path: Path) -> None:
    artifacts, cache = store_at(tmp_path / "artifacts"), store_at(tmp_path / "cache")
    device = Device()
    first = device.calibrate(artifacts, cache)
    assert (costs_files(artifacts), len(costs_files(cache))) == ([], 1)
    assert device.calibrate(cache) == device.calibrate(artifacts, cache) == first
    assert device.runs == 1
    other = Device(runs=5)
    other.calibrate(artifacts)
    assert device.calibrate(artifacts, cache) == other.calibrate(artifacts) != first


def test_executables_that_cannot_be_told_apart_are_measured_each_time() -> None:
    device = Device()
    assert device.calibrate() != device.calibrate()
    assert device.runs == 2


def test_engines_of_other_sizes_have_costs_of_their_own(tmp_path: Path) -> None:
    larger = make_ladder(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=64, block_size=16, static_width=False)
    assert set(larger.buckets) > set(LADDER.buckets)
    store = store_at(tmp_path)
    one, two = Device(), Device(larger, runs=5)
    costs = one.calibrate(store), two.calibrate(store)
    assert (one.calibrate(store), two.calibrate(store)) == costs
    assert (one.runs, two.runs) == (1, 6)


def test_who_measures_first_counts_for_all(tmp_path: Path) -> None:
    store, slow, quick = store_at(tmp_path), Device(), Device(runs=5)

    def overtaken() -> dict[Bucket, int]:
        quick.calibrate(store)
        return slow.measure()

    found = calibrate(LADDER, [store], executables(), overtaken, slow.lines.append)
    assert found == quick.calibrate(store)
    assert (slow.runs, quick.runs) == (1, 6)


NAMES = [bucket.name for bucket in LADDER.buckets]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"nanoseconds": 3}',
        b'{"nanoseconds": {}}',
        b"\xff\xfe",
        *(json.dumps({"nanoseconds": dict.fromkeys(NAMES, cost)}).encode() for cost in (0, -1, 1.5, "1", True, None)),
        json.dumps({"nanoseconds": dict.fromkeys(NAMES[1:], 1)}).encode(),
        json.dumps({"nanoseconds": dict.fromkeys([*NAMES, "other"], 1)}).encode(),
    ],
)
def test_damaged_costs_are_named_and_measured_again(content: bytes, tmp_path: Path) -> None:
    store, device = store_at(tmp_path), Device()
    device.calibrate(store)
    [path] = costs_files(store)
    path.write_bytes(content)
    mended = device.calibrate(store)
    assert device.runs == 2
    assert str(path) in device.lines[-1]
    assert device.calibrate(store) == mended
    assert device.runs == 2


def test_a_store_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    device = Device()
    device.calibrate(GraphStore(tmp_path / "file" / "a", {}, {}))
    assert "cannot be kept" in device.lines[0]
    store = store_at(tmp_path)
    device.calibrate(store)
    [path] = costs_files(store)
    path.unlink()
    path.mkdir()
    device.calibrate(store)
    assert "cannot be kept" in device.lines[-1]
    assert list(store.directory.iterdir()) == [path]


@pytest.fixture(scope="module")
def config(tiny_model: Callable[[str], Path]) -> EngineConfig:
    return EngineConfig(model=str(tiny_model("llama3")), **TINY_ENGINE)


def test_measuring_runs_full_rows_and_leaves_nothing(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(config)
    graphs = compile_graphs(plan, open_stores(plan, config, print), config, lambda _line: None)
    weights = DummyWeights(plan.model, plan.spec.parameters(), plan.devices, plan.spec.packing()).make()
    runner: Any = Runner(plan.spec, {b: g.run for b, g in graphs.items()}, weights, lambda: weights, lambda: None)
    before = jax.tree.map(jnp.copy, runner._state)
    run: Callable[[Bucket, Batch], Any] = runner.run
    ran: list[Bucket] = []

    def watched(bucket: Bucket, batch: Batch) -> Any:
        ran.append(bucket)
        assert (batch[:, Header.LENGTH] == (bucket.share if isinstance(bucket, ContextBucket) else 1)).all()
        return run(bucket, batch)

    monkeypatch.setattr(runner, "run", watched)
    compiled = COMPILE_EVENTS.count
    costs = runner.measure()
    assert COMPILE_EVENTS.count == compiled
    assert costs.keys() == set(plan.ladder.buckets) == set(ran)
    assert all(type(cost) is int and cost > 0 for cost in costs.values())
    assert ran == list(costs) * (len(ran) // len(costs)), "graphs take turns"
    monkeypatch.setattr("xlaserve.engine.runner._MEASURED_ENOUGH", -1.0)
    ran.clear()
    assert runner.measure().keys() == costs.keys()
    assert len(ran) == 2 * len(costs), "a slow machine measures twice, and no more"
    caches = [np.asarray(array) for array in runner._kv]  # of a layer, or with the CPU kernels of all layers
    assert all(not cache.reshape(-1, *cache.shape[-4:])[:, 1:].any() for cache in caches), "only the null block is written to"
    for old, new in zip(before, runner._state, strict=True):
        assert np.array_equal(np.asarray(old)[:-1], np.asarray(new)[:-1]), "only the spare slot is written to"


def test_compiling_measures_for_the_engine(config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xlaserve import LLM
    from xlaserve.engine import build

    plan = make_plan(config)
    stores = open_stores(plan, config, print)
    graphs = compile_graphs(plan, stores, config, lambda _line: None)
    with LLM(config.model, **TINY_ENGINE) as llm:
        assert vars(llm)["_core"]._scheduler._ladder.costs.keys() == set(plan.ladder.buckets), "choices rest on what was measured"
    lines: list[str] = []
    monkeypatch.setattr(Runner, "measure", lambda _runner: pytest.fail("costs are known"))
    measure_costs(plan, stores, graphs, lines.append)
    assert lines == [f"costs of {len(plan.ladder.buckets)} graphs are known"]

    def full(*_: object) -> object:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(build, "placeholder_weights", full)
    measure_costs(plan, Stores(None, store_at(tmp_path)), graphs, lines.append)
    assert lines[1:] == ["costs of graphs cannot be measured now: RESOURCE_EXHAUSTED"]
