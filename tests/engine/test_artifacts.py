"""Artifacts from end to end: a directory that `compile -o` made starts an engine with the sizes it was made for, which compiles nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlaserve import LLM, SamplingParams
from xlaserve.buckets.compile_events import COMPILE_EVENTS
from xlaserve.buckets.directories import reports
from xlaserve.buckets.lint import ladder_lint
from xlaserve.buckets.lint.finding import Finding
from xlaserve.buckets.lint.module import Place
from xlaserve.buckets.lint.report import Report
from xlaserve.buckets.manifest import read_manifest
from xlaserve.cli import main
from xlaserve.commands import compile as compile_command
from xlaserve.engine.artifacts import adopt_sizes
from xlaserve.engine.build import build, compile_graphs, make_plan, open_stores
from xlaserve.engine.config import EngineConfig
from xlaserve.errors import ArtifactError, ConfigError

SIZES: dict[str, Any] = {"max_model_len": 32, "max_num_seqs": 1, "max_num_batched_tokens": 16, "block_size": 16, "num_blocks": 5}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> str:
    return str(tiny_model("llama2"))


@pytest.fixture(scope="module")
def artifacts(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifacts") / "a"
    assert main(["compile", model, *FLAGS, "-o", str(directory)]) == 0
    return directory


def test_an_engine_starts_from_artifacts_alone(model: str, artifacts: Path, tmp_path: Path) -> None:
    made = {path: path.stat().st_mtime_ns for path in artifacts.iterdir()}
    lines: list[str] = []
    before = COMPILE_EVENTS.count
    engine = build(
        EngineConfig(model=model, artifacts=str(artifacts), artifacts_only=True, compile_cache=str(tmp_path / "cache")), lines.append
    )
    assert COMPILE_EVENTS.count == before
    assert {name: getattr(engine.plan.limits, name) for name in SIZES} == SIZES
    assert f"graphs in {artifacts}: executables hit; StableHLO hit" in lines
    assert f"costs of {len(engine.plan.ladder.buckets)} graphs are known" in lines
    assert not (tmp_path / "cache").exists()
    assert {path: path.stat().st_mtime_ns for path in artifacts.iterdir()} == made


def test_the_same_tokens_come_from_artifacts_and_without(model: str, artifacts: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    tokens = []
    for options in ({"artifacts": str(artifacts), "artifacts_only": True}, SIZES):
        with LLM(model, **options) as llm:
            tokens.append(llm.generate(["hello"], params)[0].outputs[0].token_ids)
    assert tokens[0] == tokens[1]


def test_the_manifest_tells_what_was_compiled(model: str, artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    assert manifest is not None
    plan = make_plan(EngineConfig(model=model, **SIZES))
    assert set(manifest.graphs) == {bucket.name for bucket in plan.ladder.graphs}
    assert manifest.about["sizes"].items() >= SIZES.items()
    assert len(manifest.about["config_sha256"]) == len(manifest.about["tokenizer_sha256"]) == 64
    assert manifest.program["kv"] == {"layers": 2, "shape": [5, 2, 16, 16], "dtype": "float32"}
    assert manifest.program["mesh"] == {"tp": 1}
    [machine] = manifest.machines.values()
    assert {"jax", "jaxlib", "flax", "device_kind", "platform_version", "cpu_features", "xla_flags"} <= machine.keys()
    for name, graph in manifest.graphs.items():
        [executable] = graph.executables.values()
        assert graph.stablehlo is not None
        donated = {"seat": plan.spec.state(), "copy": plan.spec.kv(), "blank": ()}.get(name, (*plan.spec.kv(), *plan.spec.state()))
        assert executable.memory["alias"] == sum(array.size * array.dtype.itemsize for array in donated), name


def test_sizes_that_the_user_names_win(model: str, artifacts: Path) -> None:
    config = adopt_sizes(EngineConfig(model=model, artifacts=str(artifacts), num_blocks=9, dtype="bfloat16"))
    assert (config.num_blocks, config.max_model_len, config.dtype, config.device) == (9, 32, "bfloat16", "cpu")
    with pytest.raises(ArtifactError, match=r"forbids that: \S+: dtype: bfloat16 here, float32 in the artifact; .*num_blocks|kv"):
        build(EngineConfig(model=model, artifacts=str(artifacts), artifacts_only=True, num_blocks=9, dtype="bfloat16"), print)


def test_lists_of_buckets_are_taken_from_artifacts(model: str, tmp_path: Path) -> None:
    """What was made for a list of buckets is found without naming the list again."""
    sizes = SIZES | {"max_num_batched_tokens": 32, "context_buckets": (32,), "generate_buckets": (32,)}
    plan = make_plan(EngineConfig(model=model, **sizes))
    store = open_stores(plan, EngineConfig(model=model, **sizes), print, tmp_path / "a").cache
    store.save("copy", stablehlo=b"any")
    again = make_plan(EngineConfig(model=model, artifacts=str(tmp_path / "a")))
    assert again.ladder.graphs == plan.ladder.graphs
    assert again.ladder.graphs != make_plan(EngineConfig(model=model, **SIZES | {"max_num_batched_tokens": 32})).ladder.graphs
    named = adopt_sizes(EngineConfig(model=model, artifacts=str(tmp_path / "a"), context_buckets=(16,)))
    assert (named.context_buckets, named.generate_buckets) == ((16,), (32,))


def test_sizes_that_cannot_be_are_told_with_their_directory(model: str, artifacts: Path, tmp_path: Path) -> None:
    manifest = json.loads((artifacts / "manifest.json").read_bytes())
    manifest["about"]["sizes"]["max_num_seqs"] = "many"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=rf"^artifacts: {tmp_path}: max_num_seqs must be an integer, got 'many'"):
        adopt_sizes(EngineConfig(model=model, artifacts=str(tmp_path)))


def test_a_directory_without_artifacts_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no manifest.json; `xlaserve compile MODEL -o"):
        make_plan(EngineConfig(model=model, artifacts=str(tmp_path)))


def test_artifacts_of_another_checkpoint_are_told(tiny_model: Callable[[str], Path], artifacts: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    copy.mkdir()
    for path in tiny_model("llama2").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"note": "another"}))
    lines: list[str] = []
    config = EngineConfig(model=str(copy), artifacts=str(artifacts), artifacts_only=True)
    plan = make_plan(config)
    graphs = compile_graphs(plan, open_stores(plan, config, lines.append), config, lines.append)
    assert {graph.source for graph in graphs.values()} == {"loaded"}
    assert lines[0].endswith("made for another checkpoint (tokenizer_sha256 differ); its graphs may still fit")


def test_compiling_from_one_directory_into_another_is_refused(model: str, artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", model, "--artifacts", str(artifacts), "-o", f"{artifacts}-2"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_compiling_into_another_artifact_is_refused(model: str, artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", model, *FLAGS, "--num-blocks", "6", "-o", str(artifacts)]) == 1
    assert f"{artifacts}: holds another artifact (kv.shape[0]: 6 here, 5 in the artifact; num_blocks" in capsys.readouterr().err


@pytest.mark.parametrize(("platform", "target"), [("neuron", "trn2"), ("cuda", "a100")])
def test_targets_that_are_not_here(
    platform: str, target: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jax.experimental import topologies

    def absent(**_options: object) -> object:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    flags = ["--max-model-len=128", "--max-num-seqs=1", "--max-num-batched-tokens=128", "--num-blocks=9"]
    assert main(["compile", model, *flags, "--platform", platform, "--target", target, "-o", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "only StableHLO is made here: " in out
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None
    assert (manifest.program["platform"], manifest.machines) == (platform, {})
    assert all(graph.stablehlo for graph in manifest.graphs.values())
    assert main(["compile", model, "--platform", "cpu", "--target", target]) == 2
    assert set(manifest.reports) == ({target} if platform == "neuron" else set())
    assert (f"lint {target}: fit: {len(manifest.graphs)} graphs, 0 error" in out) == (platform == "neuron")
    for report in reports(tmp_path / "a").values():
        assert (set(report["graphs"]), report["counts"]["error"]) == (set(manifest.graphs), 0)


def test_graphs_that_the_lint_refuses_are_not_called_fit(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Finding("N02", "error", "no sort", "sort", Place(), "a document", ("copy",), ("stablehlo",), 1)
    monkeypatch.setattr(ladder_lint, "lint_ladder", lambda *_arguments: (Report("inf2", ("copy",), (found,), ()),))
    monkeypatch.setattr(compile_command, "_make", lambda _plan, stores, _config, **_options: stores.cache.save("copy", stablehlo=b"any"))
    directory = tmp_path / "a"
    sizes = ["--max-model-len=128", "--max-num-seqs=1", "--max-num-batched-tokens=128", "--num-blocks=9"]
    assert main(["compile", model, *sizes, "--target", "inf2", "-o", str(directory)]) == 1
    out = capsys.readouterr().out
    assert "error N02: no sort (copy)" in out
    assert main(["artifacts", "show", str(directory)]) == 0
    assert "lint inf2: NOT FIT: 1 graphs, 1 error" in capsys.readouterr().out
    assert main(["artifacts", "verify", str(directory)]) == 0
    path = directory / "lint-inf2.json"
    path.write_bytes(path.read_bytes().replace(b'"error": 1', b'"error": 0'))
    assert main(["artifacts", "verify", str(directory)]) == 1
    assert main(["artifacts", "show", str(directory)]) == 1
    assert "lint-inf2.json: its sha256 is not the recorded one" in capsys.readouterr().err
