"""`xlaserve bench` from start to end on a tiny model, the form of its results, and what it refuses."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_ENGINE
from tests.server.live import live_server
from tests.server.scripted_engine import ScriptedEngine
from xlaserve.bench import server_process, startup
from xlaserve.bench.ceilings import Probe, measure
from xlaserve.bench.result import SCHEMA, Recorder
from xlaserve.cli import build_parser, main
from xlaserve.commands.bench_flags import goodput_limits
from xlaserve.commands.engine_flags import add_engine_arguments, engine_arguments
from xlaserve.errors import ConfigError, XlaserveError

COMMON: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "benchmark": str,
    "date": str,
    "seconds": float,
    "versions": dict,
    "machine": dict,
    "load_average": dict,
    "arguments": dict,
    "subject": dict,
    "repeats": int,
    "warnings": list,
    "metrics": dict,
}
SPREAD = {"count", "mean", "std", "min", "median", "max"}
ROOT = Path(__file__).resolve().parents[2]


def flags(tiny_model: Callable[[str], Path]) -> list[str]:
    return [str(tiny_model("llama3")), *(f"--{name.replace('_', '-')}={value}" for name, value in TINY_ENGINE.items())]


def bench(tmp_path: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run one benchmark in this process; its result, of which the common part has been checked."""
    file = tmp_path / "result.json"
    assert main(["bench", *arguments, "--output-json", str(file)]) == code
    result = json.loads(file.read_text())
    assert {name: type(result[name]) for name in COMMON} == COMMON
    assert result["schema"] == SCHEMA
    assert result["benchmark"] == arguments[0]
    assert {"xlaserve", "python", "jax", "jaxlib"} <= result["versions"].keys()
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["cpu"]
    assert {"before", "after"} == result["load_average"].keys()
    assert {"model", "dtype", "device", "platform"} <= result["subject"].keys()
    assert result["arguments"]["output_json"] == str(file)
    return result


def test_latency(tmp_path: Path, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--input-len=20", "--output-len=6", "--batch-size=3", "--num-iters=4", "--num-iters-warmup=1")
    result = bench(tmp_path, "latency", *flags(tiny_model), *sizes)
    metrics = result["metrics"]
    assert len(metrics["latencies"]) == result["repeats"] == 4
    assert SPREAD | {"p10", "p99"} <= metrics["latency_s"].keys()
    assert metrics["latency_s"]["median"] == pytest.approx(sum(sorted(metrics["latencies"])[1:3]) / 2)
    assert metrics["ttft_ms"]["count"] == 12
    assert metrics["ttft_ms"]["max"] <= metrics["latency_s"]["max"] * 1e3
    assert metrics["cached_input_tokens"] == 0
    fastest = 18 / min(metrics["latencies"])
    assert metrics["output_throughput"]["max"] == pytest.approx(fastest)
    assert "Avg latency (s)" in capsys.readouterr().out


def test_throughput(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    work = ("--num-prompts=12", "--random-input-len=40", "--random-output-len=4", "--random-range-ratio=0.5", "--num-iters=2")
    result = bench(tmp_path, "throughput", *flags(tiny_model), *work)
    metrics, workload = result["metrics"], result["workload"]
    assert workload["num_prompts"] == 24
    assert metrics["total_input_tokens"] == round(workload["input_len"]["mean"] * 24)
    assert metrics["total_output_tokens"] == round(workload["output_len"]["mean"] * 24)
    assert metrics["cached_input_tokens"] == 0
    assert metrics["request_throughput"]["max"] == pytest.approx(12 / metrics["elapsed_time"]["min"])
    shared = bench(tmp_path, "throughput", *flags(tiny_model), *work, "--random-prefix-len=64")
    assert shared["metrics"]["cached_input_tokens"] > 0


def test_kernels(tmp_path: Path, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--contexts=64,250", "--graphs", "generate-2", "context-1x32", "--bandwidth-bytes=4M", "--gemm-size=128", "--num-iters=3")
    result = bench(tmp_path, "kernels", *flags(tiny_model), *options)
    graphs = {(graph["graph"], graph["context"]): graph for graph in result["metrics"]["graphs"]}
    assert set(graphs) == {("generate-2-16", 64), ("generate-2-16", 250), *(("context-1x32-16", context) for context in (32, 64, 240))}
    short, long = graphs["generate-2-16", 64], graphs["generate-2-16", 250]
    # Two rows, three layers, keys and values of two heads of 16 float32 numbers, for 186 tokens more.
    assert long["kv_read_bytes"] - short["kv_read_bytes"] == 2 * 3 * 2 * 2 * 16 * 4 * 186
    assert long["weight_bytes"] == short["weight_bytes"]
    bandwidth = result["metrics"]["bandwidth"]["best"]
    assert bandwidth == max(way["max"] for way in result["metrics"]["bandwidth"]["ways"].values())
    for graph in graphs.values():
        assert graph["ms"].keys() >= SPREAD
        assert graph["bytes_per_s"] == pytest.approx(graph["bytes"] / graph["ms"]["median"] * 1e3)
        assert graph["bandwidth_share"] == pytest.approx(graph["bytes_per_s"] / bandwidth)
        assert graph["roofline_share"] == pytest.approx(max(graph["bandwidth_share"], graph["flop_share"]))
        assert graph["xla"]["flops"] > 0
        # Each group's share is of what was read around it, so all lie between what the extremes would give.
        share, ms, rate = graph["weight_share"], graph["ms"], graph["read_bytes_per_s"]
        least, most = (graph["weight_bytes"] * 1e3 / ms[slow] / rate[slow] for slow in ("max", "min"))
        assert 0 < least * 0.999 <= share["min"] <= share["median"] <= share["max"] <= most * 1.001
    assert result["skipped"] == []
    assert "generate-2-16" in capsys.readouterr().out


def test_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = bench(tmp_path, "host", "--running=1,4", "--num-iters=20")["metrics"]
    assert metrics.keys() == {"1", "4"}
    assert metrics["4"]["total_us"]["count"] == 20
    assert metrics["4"]["total_us"]["min"] >= metrics["4"]["core_us"]["min"] > 0
    assert "generate" in "\n".join(bench(tmp_path, "host", "--running=2", "--num-iters=5", "--profile")["metrics"]["profile"])
    assert "function calls" in capsys.readouterr().out


SERVE = ("--num-prompts=6", "--random-input-len=8", "--random-output-len=4", "--ignore-eos")


def test_serve_on_a_server_that_runs(tmp_path: Path, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine()
    engine.vocab_size = 512
    with live_server(engine, api_keys=("sesame",)) as live:
        model = f"--tokenizer={tiny_model('llama3')}"
        common = ("serve", f"--base-url={live.url}", model, "--api-key=sesame", *SERVE, "--text-prompts")
        result = bench(tmp_path, *common, "--request-rate=500", "--goodput", "ttft:10000", "--save-detailed", "--metric-percentiles=90,99")
        assert result["metrics"]["completed"] == result["metrics"]["good_requests"] == 6
        assert {f"{value}_{name}_ms" for value in ("mean", "median", "p90", "p99") for name in ("ttft", "tpot", "itl", "e2el")} <= result[
            "metrics"
        ].keys()
        assert len(result["requests"]) == 6
        assert result["requests"][0]["error"] is None
        assert result["subject"]["model"] == "scripted/model"
        assert result["subject"]["started"] is None
        assert result["arguments"]["request_rate"] == 500
        text = json.dumps(result)
        assert "sesame" not in text
        # A failed request is told and makes the command fail.
        engine.failure = XlaserveError("it broke")
        failed = bench(tmp_path, *common, "--num-warmups=0", "--percentile-metrics=ttft", code=1)
        assert failed["metrics"]["failed"] == 6
        assert failed["arguments"]["request_rate"] == "inf"
    printed = capsys.readouterr().out
    assert "Request goodput (req/s)" in printed
    assert "6 x" in printed


def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are started have the scripted engine."""
    monkeypatch.setattr(server_process, "XLASERVE", (sys.executable, "-m", "tests.scripted_cli"))
    monkeypatch.chdir(ROOT)


def test_serve_starts_a_server_and_ends_it(tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    arguments = (str(tiny_model("llama3")), "--max-model-len=100", f"--log-dir={tmp_path}", "--served-model-name=mine", "--text-prompts")
    result = bench(tmp_path, "serve", *arguments, *SERVE)
    assert result["metrics"]["completed"] == 6
    assert result["subject"]["model"] == "mine"
    assert "--max-model-len=100" in result["subject"]["started"]["command"]
    log = (tmp_path / "server.log").read_text()
    assert "Serving mine at" in log
    assert "stopping" in log


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    with pytest.raises(XlaserveError, match="there is no model at missing"), server_process.started_server(["missing"], tmp_path / "log"):
        pass


def test_startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(monkeypatch)
    result = bench(tmp_path, "startup", "anything", "--ways=trace", "--num-iters=1", f"--keep={tmp_path / 'kept'}", "--max-model-len=64")
    ready = result["metrics"]["trace"]["ready_s"]
    assert ready["count"] == 1
    assert ready["min"] > 0
    assert result["metrics"]["trace"]["cpu_s"]["min"] > 0
    assert result["subject"]["flags"] == ["--max-model-len=64"]
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.log")) == ["trace-0.log", "trace-1.log"]
    assert "seconds to ready" in capsys.readouterr().out


def test_stablehlo_alone_is_what_is_left_without_executables(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for name in ("a.xla", "a.stablehlo", "costs-1.json"):
        (made / name).write_text("x")
    (made / "manifest.json").write_text(json.dumps({"machines": {"m": 1}, "graphs": {"a": {"executables": {"m": 1}, "stablehlo": "s"}}}))
    startup.without_executables(made, tmp_path / "left")
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == ["a.stablehlo", "manifest.json"]
    left = json.loads((tmp_path / "left" / "manifest.json").read_text())
    assert left == {"machines": {}, "graphs": {"a": {"executables": {}, "stablehlo": "s"}}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--base-url=http://localhost:1"], "--base-url needs the model"),
        (["serve", "m", "--base-url=http://localhost:1", "--max-model-len=8"], "has no effect"),
        (["serve", "m", "--base-url=ftp://localhost", "--tokenizer={tiny}"], "must be an address"),
        (["serve", "{tiny}", "--base-url=http://127.0.0.1:9"], "cannot reach"),
        (["serve", "m", "--goodput", "ttft=3"], "such as ttft:100"),
        (["serve", "m", "--goodput", "itl:3"], "such as ttft:100"),
        (["serve", "m", "--goodput", "ttft:3", "ttft:4"], "such as ttft:100"),
        (["serve", "m", "--goodput", "ttft:zero"], "not a positive number"),
        (["serve", "m", "--dataset-path=x.json"], "--dataset-name sharegpt"),
        (["serve", "no/such/model/here", "--num-prompts=1"], "no/such/model/here"),
        (["startup", "--ways=warm"], "--ways knows"),
        (["startup", "--compile-cache=x"], "leave --compile-cache=x out"),
        (["host", "--num-iters=1000000"], "goes up to"),
        (["host", "--output-json=/no/such/directory/x.json"], "no such directory"),
        (["kernels", "{tiny}", "--graphs", "nonsense", "{sizes}"], "names none of"),
        (["latency", "{tiny}", "--input-len=250", "--output-len=20", "{sizes}"], "--max-model-len 270"),
        (["latency", "{tiny}", "--batch-size=9", "{sizes}"], "--max-num-seqs 9"),
        (["throughput", "{tiny}", "--random-input-len=256", "{sizes}"], "--max-model-len 384"),
    ],
)
def test_refusals_name_the_remedy(
    arguments: list[str], message: str, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, *sizes = flags(tiny_model)
    given = [part.replace("{tiny}", tiny) for part in arguments if part != "{sizes}"] + (sizes if "{sizes}" in arguments else [])
    assert main(["bench", *given]) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve", "--request-rate=0"],
        ["serve", "--request-rate=-1"],
        ["serve", "--burstiness=inf"],
        ["serve", "--random-range-ratio=1"],
        ["serve", "--endpoint=/v1/embeddings"],
        ["serve", "--percentile-metrics=ttft,foo"],
        ["serve", "--metric-percentiles=101"],
        ["serve", "--extra-body=[]"],
        ["serve", "--dataset-name=burstgpt"],
        ["latency", "--num-iters=0"],
        ["throughput", "--temperature=-1"],
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["bench", *arguments])
    assert exit.value.code == 2
    assert "usage: xlaserve bench" in capsys.readouterr().err


def test_flags_of_vllm_are_known() -> None:
    words = "--num-prompts 5 --request-rate inf --burstiness 1 --max-concurrency 2 --seed 3 --ignore-eos --dataset-name prefix_repetition"
    args = build_parser().parse_args(["bench", "serve", *words.split(), "--prefix-repetition-num-prefixes", "2", "--goodput", "ttft:1"])
    assert (args.num_prompts, args.max_concurrency, args.seed, args.prefix_repetition_num_prefixes) == (5, 2, 3, 2)
    assert goodput_limits(["ttft:100", "tpot:20"]) == {"ttft": 100, "tpot": 20}


GIVEN = [
    "model",
    "--max-model-len=8K",
    "--dtype=bfloat16",
    "--no-enable-prefix-caching",
    "--artifacts-only",
    "--memory-utilization=0.5",
    "--context-buckets=128,512",
    "--scheduling-policy=priority",
    "-tp=2",
    "--seed=4",
    '--override-neuron-config={"logical_nc_config": 2, "flags": ["-O1"]}',
    '--kv-events-config={"topic": "t"}',
]


def test_engine_flags_pass_on_to_another_process_unchanged() -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    given = parser.parse_args(GIVEN)
    model, written = engine_arguments(given)
    assert model == "model"
    assert len(written) == len(GIVEN) - 1
    assert parser.parse_args(["model", *written]) == given
    assert engine_arguments(parser.parse_args([])) == (None, [])


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlaserve.bench.result.load_average", lambda: [2.5, 1.0, 1.0])
    busy = Recorder("x", {}).result(subject={}, repeats=1, metrics={}, text="t", warnings=["beware."])
    assert busy.content["warnings"][0] == "beware."
    assert "load average 2.5" in busy.content["warnings"][1]
    assert "WARNING: beware." in busy.text
    monkeypatch.setattr("xlaserve.bench.result.load_average", lambda: [0.1, 1.0, 1.0])
    assert Recorder("x", {}).result(subject={}, repeats=1, metrics={}, text="t").content["warnings"] == []


def test_results_hold_what_json_has(tmp_path: Path) -> None:
    recorder = Recorder("x", {"api_key": "secret", "rate": float("inf"), "path": tmp_path, "command": "bench"})
    result = recorder.result(subject={"kernels": "1"}, repeats=1, metrics={"nothing": float("nan"), "list": (1, 2)}, text="t")
    assert result.content["arguments"] == {"api_key": "***", "path": str(tmp_path), "rate": "inf"}
    assert result.content["metrics"] == {"nothing": None, "list": [1, 2]}
    assert "kernels 1" in result.text
    result.write(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        result.write(tmp_path / "no" / "x.json")


def test_the_best_run_of_the_best_way_is_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 24.0, 30.0, 34.0])
    monkeypatch.setattr("xlaserve.bench.ceilings.time.perf_counter", lambda: next(clock))
    runs: list[str] = []
    found = measure([Probe("a", 8.0, lambda: runs.append("a")), Probe("b", 8.0, lambda: runs.append("b"))], runs=2)
    assert found.rates["a"].values == (4.0, 8.0)
    assert found.rates["b"].values == (2.0, 2.0)
    assert (found.best, found.best_way) == (8.0, "a")
    assert runs == ["a"] * 3 + ["b"] * 3  # the first of each counts for nothing
    assert found.joined(found).rates["a"].values == (4.0, 8.0, 4.0, 8.0)
