"""What the benchmarks of a card make of what they have found. Nothing here asks JAX for a device."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import reading, report
from benchmarks.gpu.artifact import carried
from benchmarks.gpu.exactness import compared, within
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.reference import Answer, distance, judged
from benchmarks.gpu.scale import CARD, REHEARSAL, Scale
from benchmarks.gpu.serving import busy, line
from benchmarks.gpu.thunks import steps, thunks
from benchmarks.gpu.vllm_serving import vllm_load
from xlaserve.buckets.ladder import make_ladder

NAN, INFINITE = float("nan"), float("inf")


def answer(*places: tuple[int, dict[int, float]]) -> dict[str, Any]:
    """Tokens, and what is known of log probabilities at each."""
    return {"tokens": [token for token, _ in places], "logprobs": [logprobs for _, logprobs in places]}


SAME = (5, {5: -1.0, 6: -2.0})


@pytest.mark.parametrize(
    ("other", "count", "difference", "gaps", "verdict"),
    [
        (answer(SAME, SAME), 2, 0.0, [], True),
        (answer((5, {5: -1.1, 6: -2.0}), SAME), 2, 0.1, [], True),
        (answer((5, {5: -1.2, 6: -2.0}), SAME), 2, 0.2, [], False),
        (answer(SAME, (6, {6: -1.9, 5: -1.0})), 1, 0.1, [1.0], False),
        (answer((8, {8: -1.0, 9: -2.0}), SAME), 0, INFINITE, [INFINITE], False),
        (answer((5, {5: NAN, 6: -2.0}), SAME), 2, INFINITE, [], False),
    ],
    ids=["equal", "rounded", "too far", "another token", "nothing in common", "no number"],
)
def test_what_is_within_a_tolerance(other: dict[str, Any], count: int, difference: float, gaps: list[float], verdict: bool) -> None:
    found = compared([answer(SAME, SAME)], [other])
    assert (found["tokens_compared"], found["gaps_where_tokens_differ"]) == (count, gaps)
    assert found["largest_difference"] == pytest.approx(difference)
    assert within({**found, "tolerance": 0.15}) is verdict


def test_tokens_may_differ_where_both_were_as_likely() -> None:
    """What comes after them is of other contexts, and is not compared."""
    one, other = answer((5, {5: -1.0, 6: -1.1}), (1, {1: -0.1})), answer((6, {6: -1.0, 5: -1.1}), (2, {2: -9.0}))
    found = compared([one], [other])
    assert found["tokens_compared"] == 0
    assert found["gaps_where_tokens_differ"] == pytest.approx([0.1])
    assert within({**found, "tolerance": 0.15})
    assert not within({**found, "gaps_where_tokens_differ": [NAN], "tolerance": 0.15})


EXACT = [np.log([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])]
"""Of a prompt of two tokens, and two that are generated after it, 1 and 2."""


def told(off: float, tokens: tuple[int, ...] = (0, 2, 1, 2)) -> list[Answer]:
    """An answer that knows the likeliest in every place, this far from exactly."""
    return [Answer(list(tokens), 2, [{int(row.argmax()): float(row.max()) + off} for row in EXACT[0]])]


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [(told(4e-3), True), (told(6e-3), False), (told(NAN), False), (told(0.0, (0, 2, 2, 2)), False)],
    ids=["rounded", "too far", "no number", "a token that another is likelier than"],
)
def test_float32_is_held_to_a_tolerance(answers: list[Answer], verdict: bool) -> None:
    assert judged(answers, EXACT, None)["within"] is verdict


def test_bfloat16_is_held_to_what_transformers_makes_of_it() -> None:
    theirs = [EXACT[0] + 0.01]
    assert judged(told(0.014), EXACT, theirs)["within"]
    assert not judged(told(0.016), EXACT, theirs)["within"]
    assert not judged(told(0.0, (0, 2, 2, 2)), EXACT, theirs)["within"]


def test_places_are_those_of_the_tokens_after_them() -> None:
    """A prompt's tokens may be unlikely; generated ones are the likeliest."""
    (answer,) = told(0.0)
    found = distance([answer], [answer.known], EXACT)
    assert (found.mean, found.largest, found.gap, found.count) == (0.0, 0.0, 0.0, 3)
    (answer,) = told(0.0, (0, 2, 0, 2))
    assert distance([answer], [answer.known], EXACT).gap == pytest.approx(math.log(0.5 / 0.2))


def trace(*spans: tuple[float, float]) -> dict[str, Any]:
    """Kernels of one stream, from when to when, and something of the host that is none."""
    names = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "Stream #7"}},
        {"ph": "M", "name": "thread_name", "pid": 2, "tid": 7, "args": {"name": "Stream of something else"}},
    ]
    kernels = [{"ph": "X", "name": "k", "pid": 1, "tid": 7, "ts": first, "dur": last - first} for first, last in spans]
    return {"traceEvents": [*names, *kernels, {"ph": "X", "name": "h", "pid": 2, "tid": 7, "ts": 0, "dur": 1000}]}


def test_the_share_of_time_without_a_kernel() -> None:
    """What overlaps counts once, and what runs while prompts are read does not count."""
    found = busy(trace((0, 10), (50, 60), (58, 70), (80, 100)), 0.5)
    assert found["idle_share"] == pytest.approx(0.2)
    assert (found["microseconds"], found["kernels"], found["longest_gaps_us"]) == (50, 3, [10])
    assert busy(trace((0, 10), (50, 60), (58, 70), (80, 100)), 0.0)["idle_share"] == pytest.approx(0.5)


def test_a_trace_that_tells_nothing_is_an_error() -> None:
    assert busy(trace(), 0.5)["error"] == "the trace has no kernels"
    assert "no kernel began after" in busy(trace((0, 10), (20, 100)), 0.9)["error"]


def test_figures_of_a_wave() -> None:
    found = line(2, [[1.5, 1.6], [3.0, 3.2]], 1.0)
    assert found["ttft_ms"] == pytest.approx({"median": 1250, "max": 2000})
    assert (found["output_tokens"], found["seconds"]) == (4, pytest.approx(2.2))


@pytest.mark.parametrize("scale", [CARD, REHEARSAL], ids=["card", "rehearsal"])
def test_the_widths_that_gather_is_told_are_the_engines(scale: Scale) -> None:
    """`graphs-gather` would have a graph for each factor of two otherwise."""
    sizes = {name: scale.step_engine[name] for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens")}
    lengths = (scale.context, sizes["max_model_len"])
    ladder = make_ladder(**sizes, block_size=16, static_width=True, generate_lengths=lengths)
    assert {bucket.width * 16 for bucket in ladder.generate} == set(lengths)
    timed = ("generate-1-", f"generate-{scale.rows}-", f"context-1x{scale.prompt}-")
    assert 5 <= sum(bucket.name.startswith(timed) for bucket in ladder.buckets) <= 6


GRAPH = {"graph": "generate-1-640", "rows": 1, "context": 1024, "ms": {"median": 10.0}, "bytes": 9e9, "flops": 1e10}


def test_graphs_are_told_without_the_ceilings() -> None:
    metrics = {"graphs": [GRAPH], "bandwidth": {"best": 1e12}, "gemm": {"best": 1e14}}
    part = {"metrics": metrics, "skipped": ["generate-64-640 with 8192 tokens of context: needs --num-blocks 9"]}
    text = report.section({"ceilings": {"error": "out of memory"}, "graphs-tiled": part})
    assert "| tiled | generate-1-640 | 1024 | 9,000 | 10 | 10.000 | 90% | 1% | 85% | met |" in text
    assert "shares are of the fastest" in text
    assert "Not timed: tiled: generate-64-640 with 8192 tokens" in text
    text = report.section({"ceilings": {"copy_bytes_per_s": 2e12, "gemm_flops_per_s": 1e14}, "graphs-tiled": part})
    assert "| 45% | 1% | 85% | not met |" in text
    assert "### Graphs" not in report.section({"ceilings": {"copy_bytes_per_s": 2e12, "gemm_flops_per_s": 1e14}})


def test_a_wave_that_failed_is_a_line_of_the_report() -> None:
    waves = [line(1, [[1.5, 1.6]], 1.0), {"concurrency": 8, "error": "E: a|b\nc"}]
    text = report.section({"serve-tiled": {"lines": waves, "idle": {"error": "E: no profiler"}}})
    assert "| serve-tiled | 1 | 3 | 500 | 100.00 | 100.00 |" in text
    assert "| serve-tiled | 8 | 0 | | | E: a/b c |" in text
    assert "serve-tiled: device idle not measured: E: no profiler." in text


def test_the_report_names_families_that_are_too_far() -> None:
    lines = [{"family": "llama3", **judged(told(5e-4), EXACT, None)}, {"family": "qwen3", **judged(told(0.1), EXACT, None)}]
    text = report.section({"reference-float32": {"lines": lines}})
    assert "| float32 | llama3 | 3 | 5.0e-04 | 5.0e-04 | 0.0e+00 | | | within |" in text
    assert "| float32 | qwen3 | 3 | 1.0e-01 | 1.0e-01 | 0.0e+00 | | | NOT WITHIN |" in text
    lines = [{"family": "qwen3", **judged(told(0.1), EXACT, [EXACT[0] + 0.05])}]
    text = report.section({"reference-mosaic": {"lines": lines}})
    assert "| mosaic | qwen3 | 3 | 1.0e-01 | 1.0e-01 | 0.0e+00 | 5.0e-02 | 5.0e-02 | NOT WITHIN |" in text


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that are run: two, which do nothing, on a card that is called A."""
    names: list[str] = []

    def run(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
        names.append(name)
        return {"card": command.card(), "part_seconds": 0.0}

    monkeypatch.setattr(command, "_run", run)
    monkeypatch.setattr(command, "card", lambda: "A")
    monkeypatch.setattr(command, "PARTS", {"short": (None, 10), "long": (None, 100)})
    return names


def arguments(out: Path, **changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"out": out, "parts": ["short", "long"], "seconds": 540.0, "rehearse": False, **changed})


def test_what_has_succeeded_is_not_run_again(tmp_path: Path, ran: list[str]) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"short": {"card": "A"}, "long": {"error": "no", "part_seconds": 1}}))
    assert command._all(arguments(tmp_path)) == 0
    assert ran == ["long"]
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


def test_a_rehearsal_is_not_taken_for_the_card(tmp_path: Path, ran: list[str]) -> None:
    assert command._all(arguments(tmp_path, rehearse=True)) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["rehearsal.json"]
    assert command._all(arguments(tmp_path)) == 0
    assert ran == ["short", "long"] * 2


def test_results_are_of_one_card(tmp_path: Path, ran: list[str]) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"short": {"card": "B"}}))
    with pytest.raises(SystemExit, match="is of another card than A"):
        command._all(arguments(tmp_path))
    assert ran == []


def test_a_part_is_begun_where_its_time_is_left(tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or where it is the first: with less than it may take altogether there would be none at all."""
    now = iter([0.0, 0.0, 30.0])
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(now)))
    command._all(arguments(tmp_path, seconds=120.0))
    assert ran == ["short"]
    now = iter([0.0, 0.0])
    command._all(arguments(tmp_path, seconds=50.0))
    assert ran == ["short", "long"]


THUNKS = """\
000: kCommandBuffer [source       | next=218 (1)]
    001: kCustomKernel [source       | next=006 (5)] loop_cosine_sine_fusion grid: [32, 1, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
    002: kCublasLtMatmul [prev=001 (1) | next=003 (1)] kCublasLtMatmul
    003: kConditional [prev=002 (1) | next=005 (1)]
      false_branch:
        004: kCustomKernel [source | sink] loop_add_fusion grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
    005: kCustomKernel [prev=003 (1) | sink] gemm_fusion_dot_125 grid: [12288, 1, 1] threads: [64, 1, 1]  shared_memory: 512 bytes
218: kConditional [prev=000 (1) | next=219 (1)]
  true_branch:
    219: kCustomKernel [source | sink] loop_add_fusion_6 grid: [64, 1, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
    000: kCommandBuffer [source | sink]
        220: kCustomKernel [source | sink] loop_add_fusion_7 grid: [64, 1, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
"""


def test_what_a_step_runs_is_told_from_what_it_may_run() -> None:
    top, run = steps(THUNKS)
    assert top == {"CommandBuffer": 1, "Conditional": 1}
    assert [kind for kind, _ in run] == ["CustomKernel", "CublasLtMatmul", "Conditional", "CustomKernel", "Conditional"]
    assert [kernel for _, kernel in run][::3] == ["loop_cosine_sine_fusion", "gemm_fusion_dot_125"]


def test_thunks_are_counted_for_every_graph_of_a_step(tmp_path: Path) -> None:
    for graph in ("generate_8_640", "copy"):
        (tmp_path / f"module_1.jit_{graph}.{reading.SUFFIX}").write_text(THUNKS)
    counted = {"CommandBuffer": 2, "CustomKernel": 5, "CublasLtMatmul": 1, "Conditional": 2}
    assert thunks(tmp_path) == {"generate-8-640": {"top": {"CommandBuffer": 1, "Conditional": 1}, "all": counted}}


def test_graphs_are_described_from_what_xla_has_written(tmp_path: Path) -> None:
    """Two layers of four products each, all Triton's, the form of most of them told."""
    names = [f"loop_fusion_{at}" if at % 3 else f"gemm_fusion_dot_{at}" for at in range(24)]
    thunks = "\n".join(f"    {at + 1:03}: kCustomKernel [prev={at:03} (1) | sink] {name} grid: [1]" for at, name in enumerate(names))
    (tmp_path / f"module_1.jit_generate_1_640.{reading.SUFFIX}").write_text(f"000: kCommandBuffer [source | sink]\n{thunks}\n")
    lines = [
        '"num_stages":1,"num_warps":"2","output_tiles":[{"sizes":["1","16","8"]}],"kind":"__triton_nested_gemm_fusion"',
        '"output_tiles":[{"sizes":["1","16","8"]}],"num_stages":1,"kind":"__triton_nested_gemm_fusion"',
        '"num_stages":3,"output_tiles":[{"sizes":["1","64","64"]}],"kind":"__triton_nested_gemm_fusion"',
        '"num_stages":2,"output_tiles":[{"sizes":["4096"]}],"kind":"__triton"',
    ]
    (tmp_path / "module_1.jit_generate_1_640.sm_9.0a_gpu_after_optimizations.txt").write_text("\n".join(lines))
    memory = {"temp": 7_000_000, "output": 5, "alias": 4}
    graphs = {"generate-1-640": {"executables": {"0": {"memory": memory}}}}
    [file] = tmp_path.glob(f"*{reading.SUFFIX}")
    found = reading.described(file, graphs)
    assert found == {
        "graph": "generate-1-640",
        "top": {"CommandBuffer": 1},
        "run": 24,
        "of a layer": 12,
        "products": "3 Triton, most of 1 x 16 x 8, stages 1",
        "workspace": 7_000_001,
    }
    text = reading.table([{"form": "kernels native", **found}], "command", "target h100")
    assert text.splitlines()[-1] == (
        "| kernels native | generate-1-640 | 1 CommandBuffer | 24 | 12 | 3 Triton, most of 1 x 16 x 8, stages 1 | 7 |"
    )


def test_without_results_everything_is_told_as_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, str] = {}
    monkeypatch.setattr(report, "replace_section", lambda _path, name, text: written.update({name: text}))
    monkeypatch.setattr(report, "write_raw", lambda _name, _found: None)
    report.write(tmp_path)
    assert "Nothing has been measured: no card was there." in written["gpu"]
    assert f"Not run: {', '.join(PARTS)}." in written["gpu"]
    assert " | " not in written["gpu"]


def test_without_vllm_its_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "vLLM is not installed here" in vllm_load(CARD, lambda _line: None)["error"]


def test_what_needs_a_card_is_not_run_without_one() -> None:
    assert "needs a card" in carried(REHEARSAL, lambda _line: None)["error"]
