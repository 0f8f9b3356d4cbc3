"""Whether graphs call native kernels: the user's choice, what the platform has, and what artifacts were made with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlaserve.buckets.keys import program_key
from xlaserve.cli import main
from xlaserve.commands import doctor
from xlaserve.engine.artifacts import adopt_sizes
from xlaserve.engine.build import Plan, compile_graphs, make_plan, open_stores
from xlaserve.engine.config import EngineConfig
from xlaserve.errors import ArtifactError, ConfigError
from xlaserve.kernels.build import COMMAND
from xlaserve.kernels.library import Library
from xlaserve.platforms import cpu
from xlaserve.platforms.cuda import CUDA
from xlaserve.platforms.neuron import NEURON
from xlaserve.platforms.platform import Platform

SIZES: dict[str, Any] = {"max_model_len": 32, "max_num_seqs": 1, "max_num_batched_tokens": 16, "block_size": 16, "num_blocks": 5}
WHY = "they are not built"
LIBRARY = Library("avx2", None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> str:
    return str(tiny_model("llama2"))


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Has this machine kernels, or not, whatever is built."""

    def settle(kernels: bool) -> None:
        monkeypatch.setattr(cpu, "library", lambda: LIBRARY if kernels else None)
        monkeypatch.setattr(cpu, "absence", lambda: None if kernels else WHY)
        monkeypatch.setattr("xlaserve.kernels.library.open_library", lambda: LIBRARY if kernels else WHY)

    return settle


def plan_of(model: str, **options: Any) -> Plan:
    return make_plan(EngineConfig(model=model, **SIZES | options))


def kernels_line(plan: Plan) -> str:
    [line] = [line for line in plan.describe().splitlines() if line.startswith("kernels")]
    return line


def test_they_are_used_where_they_are(model: str, have: Callable[[bool], None]) -> None:
    have(True)
    for kernels in ("auto", "native"):
        plan = plan_of(model, kernels=kernels)
        assert kernels_line(plan) == f"kernels   {LIBRARY.version}, avx2"
        assert plan.spec.kernels == plan.info().kernels == program_key(plan.spec, "cpu")["kernels"] == LIBRARY.version
    plan = plan_of(model, kernels="none")
    assert (kernels_line(plan), plan.spec.kernels, plan.info().kernels) == ("kernels   none: turned off", "none", "none")


def test_without_them_the_plan_says_why(model: str, have: Callable[[bool], None]) -> None:
    have(False)
    plan = plan_of(model)
    assert (kernels_line(plan), plan.spec.kernels) == (f"kernels   none: {WHY}", "none")
    with pytest.raises(ConfigError, match=rf"kernels: there are no native kernels here: {WHY}\. Or use --kernels auto"):
        plan_of(model, kernels="native")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "why"),
    [
        ("float16", 64, "they compute in float32 and bfloat16, not in float16"),
        ("bfloat16", 12, "they need heads of a multiple of 8 numbers, and this model's have 12"),
    ],
)
def test_what_they_cannot_compute_goes_without(have: Callable[[bool], None], dtype: str, head_dim: int, why: str) -> None:
    have(True)
    assert cpu.CPU.with_kernels("auto", "bfloat16", 64).kernels == LIBRARY.version
    found = cpu.CPU.with_kernels("auto", dtype, head_dim)
    assert (found.kernels, found.kernels_note) == ("none", why)
    with pytest.raises(ConfigError, match=f"there are no native kernels here: {why}"):
        cpu.CPU.with_kernels("native", dtype, head_dim)


@pytest.mark.parametrize("platform", [CUDA, NEURON], ids=lambda platform: platform.name)
def test_other_platforms_have_none_in_float32(platform: Platform) -> None:
    assert platform.with_kernels("auto", "float32", 64) is platform.with_kernels("none", "float32", 64) is platform
    assert (platform.kernels, platform.kernels_note) == ("none", "")
    with pytest.raises(ConfigError, match=r"there are none for the platform neuron|there is no native kernel here: .* not in float32"):
        platform.with_kernels("native", "float32", 64)


def test_the_choice_is_one_of_three(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="kernels must be one of auto, none, native, got 'fast'"):
        EngineConfig(kernels="fast")  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        main(["serve", "--kernels", "fast"])
    assert "--kernels" in capsys.readouterr().err


def artifacts(model: str, directory: Path) -> Path:
    """A directory that was made with what this machine has."""
    config = EngineConfig(model=model, **SIZES)
    open_stores(make_plan(config), config, print, directory).cache.save("copy", stablehlo=b"any", executable=b"any")
    return directory


def verdict(model: str, directory: Path, **options: Any) -> str:
    """What an engine that may not compile says of the directory."""
    empty = str(directory.parent / "cache")  # the session's holds what other tests compiled
    config = EngineConfig(model=model, artifacts=str(directory), artifacts_only=True, compile_cache=empty, **options)
    plan, lines = make_plan(config), list[str]()
    with pytest.raises(ArtifactError) as raised:
        compile_graphs(plan, open_stores(plan, config, lines.append), config, lines.append)
    assert lines[0].startswith(f"graphs in {directory}: ")
    told = lines[0].removeprefix(f"graphs in {directory}: miss (").removesuffix(")")
    assert "hit" in told or told in str(raised.value)
    return told


def test_what_was_made_with_them_is_of_no_use_without(model: str, have: Callable[[bool], None], tmp_path: Path) -> None:
    have(True)
    directory = artifacts(model, tmp_path / "a")
    assert json.loads((directory / "manifest.json").read_text())["program"]["kernels"] == LIBRARY.version
    have(False)
    remedy = f"install them with `{COMMAND}`, or compile without them"
    assert verdict(model, directory) == f"kernels: none here, {LIBRARY.version} in the artifact ({remedy})"
    have(True)
    assert "executables hit" in verdict(model, directory)


def test_what_was_made_without_them_is_used_without(model: str, have: Callable[[bool], None], tmp_path: Path) -> None:
    have(False)
    directory = artifacts(model, tmp_path / "a")
    have(True)
    assert adopt_sizes(EngineConfig(model=model, artifacts=str(directory))).kernels == "none"
    assert "executables hit" in verdict(model, directory)
    told = verdict(model, directory, kernels="native")
    assert told == f"kernels: {LIBRARY.version} here, none in the artifact (do without them: --kernels none)"


def test_the_doctor_knows(have: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_probe_jax", lambda: {"backend": "cpu", "devices": []})
    have(True)
    assert main(["doctor"]) == 0
    assert f"kernels        {LIBRARY.version}, avx2 (for cpu)\n" in capsys.readouterr().out
    have(False)
    assert main(["doctor"]) == 0
    assert f"kernels        none: {WHY}\n" in capsys.readouterr().out
