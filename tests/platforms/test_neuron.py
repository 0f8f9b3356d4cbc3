"""The Neuron platform without Neuron: options and what they make of compiler flags, memory from AWS's tools, flags while compiling."""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from tests.platforms.fake_neuron import CHIP, put_tools
from xlaserve.errors import ConfigError
from xlaserve.platforms.cpu import CPU
from xlaserve.platforms.held_variable import HeldVariable
from xlaserve.platforms.neuron import NEURON, NeuronPlatform
from xlaserve.platforms.neuron_options import NeuronOptions, parse_options
from xlaserve.platforms.neuron_tools import list_devices


class Core:
    """A core as the plugin shows it."""

    device_kind = "toy"

    class client:
        platform_version = "1"

    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


def test_flags_are_those_of_nxd_inference() -> None:
    context, generate = (" ".join(NeuronOptions().compiler_flags(family)) for family in ("context", "generate"))
    for flags in (context, generate):
        assert "--auto-cast=none --model-type=transformer" in flags
        assert "--vectorize-strided-dma" in flags
        assert "--lnc" not in flags
    assert "-O1" in context
    assert "--cc-pipeline-tiling-factor=2 " in context
    assert "--internal-hlo2tensorizer-options=--modular-flow-mac-threshold=10 --verify-hlo=true" in context
    assert "-O2" in generate
    assert "--cc-pipeline-tiling-factor=1 " in generate
    assert "modular-flow" not in generate


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"logical_nc_config": 2}, "--lnc=2"),
        ({"scratchpad_page_size": 1024}, "--hbm-scratchpad-page-size=1024"),
        ({"enable_long_context_mode": True}, "--internal-disable-fma-on-ios --disable-mixed-precision-accumulation"),
        ({"cc_pipeline_tiling_factor": 4}, "--cc-pipeline-tiling-factor=4 "),
        ({"flags": ("--target=trn2",)}, "--target=trn2"),
        ({"context_encoding_flags": ("--x", "y")}, "--x=y"),
    ],
)
def test_every_option_reaches_the_compiler(options: dict[str, Any], wanted: str) -> None:
    assert wanted not in " ".join(NeuronOptions().compiler_flags("context"))
    assert wanted in " ".join(NeuronOptions(**options).compiler_flags("context"))


def test_the_users_flags_replace_ours_of_the_same_name_and_the_familys_replace_those() -> None:
    options = NeuronOptions(flags=("--optlevel=3", "--auto-cast", "all", "--new"), token_generation_flags=("-O1",))
    context, generate, upkeep = (options.compiler_flags(family) for family in ("context", "generate", "upkeep"))
    assert [flag for flag in context if flag.startswith(("-O", "--opt", "--auto", "--new"))] == ["--optlevel=3", "--auto-cast=all", "--new"]
    assert [flag for flag in generate if flag.startswith(("-O", "--opt"))] == ["-O1"]
    assert "--optlevel=3" in upkeep


def test_what_changes_no_executable_is_not_in_the_key() -> None:
    plain = NeuronOptions()
    logged = NeuronOptions(flags=("--cache_dir=/somewhere", "--retry_failed_compilation", "--log_level=INFO"))
    assert "--cache_dir=/somewhere" in logged.compiler_flags("context")
    assert logged.key("context") == plain.key("context")
    assert NeuronOptions(flags=("--target=trn1",)).key("context") != plain.key("context") != plain.key("generate")


def test_json_is_read_into_options() -> None:
    text = '{"logical_nc_config": 2, "context_encoding_flags": "-O3 --a=\'b c\'", "token_generation_flags": ["--d"]}'
    assert parse_options(text) == NeuronOptions(
        logical_nc_config=2, context_encoding_flags=("-O3", "--a=b c"), token_generation_flags=("--d",)
    )
    assert parse_options("{}") == NeuronOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a JSON object"),
        ("[1]", r"must be a JSON object, got \[1\]"),
        ('{"lnc": 2, "fused_qkv": true}', "does not know fused_qkv, lnc; it knows cc_pipeline_tiling_factor, .*scratchpad_page_size"),
        ('{"seq_len": 4096}', "does not know seq_len .use --max-model-len."),
        ('{"context_encoding_buckets": [128]}', "use --context-buckets"),
        ('{"logical_nc_config": 3}', "logical_nc_config must be 1 or 2, got 3"),
        ('{"cc_pipeline_tiling_factor": null}', "cc_pipeline_tiling_factor must be a positive whole number, got None"),
        ('{"scratchpad_page_size": "1"}', "scratchpad_page_size must be a positive whole number, got '1'"),
        ('{"enable_long_context_mode": 1}', "enable_long_context_mode must be true or false, got 1"),
        ('{"flags": [1]}', r"flags must be text or a list of texts, got \[1\]"),
        ('{"flags": "\'"}', "flags: No closing quotation"),
    ],
)
def test_json_that_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_options(text)


def test_the_platform_takes_its_options_into_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda _name: [Core({"bytes_limit": 1000})])
    changed = NEURON.configured(NeuronOptions(token_generation_flags=("-O3",)))
    assert NEURON.configured(None) is NEURON
    before, after = NEURON.fingerprint(), changed.fingerprint()
    assert {name for name in before if before[name] != after[name]} == {"generate_flags"}


def test_the_plugin_finds_each_familys_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_CC_FLAGS", "--mine")
    for family in ("context", "generate", "upkeep"):
        with NEURON.compiling(family):
            assert tuple(shlex.split(os.environ["NEURON_CC_FLAGS"])) == NeuronOptions().compiler_flags(family)
    assert os.environ["NEURON_CC_FLAGS"] == "--mine"


def test_threads_share_a_value_and_wait_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_VARIABLE", raising=False)
    variable = HeldVariable("A_VARIABLE")
    together, seen = threading.Barrier(2, timeout=60), []
    release = threading.Event()

    def first() -> None:
        with variable.hold("a"):
            together.wait()  # both hold it at once, or this breaks
            release.wait(60)
            seen.append(os.environ["A_VARIABLE"])

    def other() -> None:
        with variable.hold("b"):
            seen.append(os.environ["A_VARIABLE"])

    threads = [threading.Thread(target=first)]
    threads[0].start()
    with variable.hold("a"):
        together.wait()
        threads.append(threading.Thread(target=other))
        threads[1].start()
        release.set()
        threads[0].join(60)
        assert seen == ["a"], "the other value waits while anybody holds this one"
    threads[1].join(60)
    assert seen == ["a", "b"]
    assert "A_VARIABLE" not in os.environ


def test_memory_is_a_cores_share_of_its_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tools(tmp_path, monkeypatch, devices=[CHIP])
    monkeypatch.setattr(jax, "devices", lambda _name: [Core(None)])
    assert NEURON.memory() == 24 << 30
    assert NEURON.planned_memory(0.5) == 12 << 30
    monkeypatch.setattr(jax, "devices", lambda _name: [Core({"bytes_limit": 1000})])
    assert NEURON.memory() == 1000, "what the plugin tells counts"


@pytest.mark.parametrize(
    ("devices", "message"),
    [("nonsense", "Expecting value"), ([{"nc_count": 2}], "unknown form"), (None, "not on PATH"), (3, "failed with 3")],
)
def test_tools_that_fail_are_named_and_stop_nothing(devices: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tools(tmp_path, monkeypatch, devices=devices)
    monkeypatch.setattr(jax, "devices", lambda _name: [Core(None)])
    with pytest.raises((OSError, ValueError), match=message):
        list_devices()
    assert NEURON.memory() is None


def test_other_platforms_refuse_neurons_options_but_not_its_variables() -> None:
    with pytest.raises(
        ConfigError, match=r"^neuron: logical_nc_config 2, flags \('-O1',\) is for the platform neuron, and this one is cpu: "
    ):
        CPU.configured(NeuronOptions(logical_nc_config=2, flags=("-O1",), environment_flags=("-O3",)))
    assert CPU.configured(NeuronOptions(environment_flags=("-O3",))) is CPU
    assert CPU.configured(NeuronOptions()) is CPU.configured(None) is CPU


def test_flags_of_the_variable_come_before_the_users() -> None:
    options = NeuronOptions(environment_flags=("--a=1", "--b=1"), flags=("--a=2",))
    assert {"--a=2", "--b=1"} <= set(options.compiler_flags("upkeep"))
    assert options.asked == {"flags": ("--a=2",)}
    with pytest.raises(ConfigError, match="does not know environment_flags"):
        parse_options('{"environment_flags": "-O1"}')


@pytest.mark.parametrize(("kind", "target"), [("trn2", "trn2"), ("Trn1", "trn1"), ("something new", None)])
def test_the_lint_goes_by_the_device(kind: str, target: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NeuronPlatform, "devices", lambda _self: [SimpleNamespace(device_kind=kind)])
    found = NEURON.lint_target()
    assert (found and found.name) == target
    assert CPU.lint_target() is None
