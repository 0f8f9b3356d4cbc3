"""A third party's platform, installed as a package is: found by its entry point, chosen by name, and run from end to end."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from xlaserve import LLM, SamplingParams
from xlaserve.errors import ConfigError
from xlaserve.platforms.registry import platforms, select_platform

PACKAGE = Path(__file__).parent / "example_plugin"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8, 9], list(range(10, 80))]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """The package with what an installer writes beside it."""
    about = tmp_path / "xlaserve_example-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: xlaserve-example\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[xlaserve.platforms]\nexample = xlaserve_example:EXAMPLE\n")
    (tmp_path / "xlaserve_example").symlink_to(PACKAGE / "xlaserve_example", target_is_directory=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("xlaserve_example", None)


def generate(model: Path, **options: Any) -> list[list[int]]:
    with LLM(str(model), max_model_len=128, **options) as llm:
        return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.usefixtures("installed")
def test_it_runs_a_model_with_its_own_choices(
    tiny_model: Callable[[str], Path],
    compile_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tmp_path / "example-tiny"
    model.symlink_to(tiny_model("llama3"), target_is_directory=True)
    before = set(compile_cache.iterdir())
    with caplog.at_level(logging.INFO, "xlaserve"):
        tokens = generate(model, device="example")
    assert "platform  example (cpu)" in caplog.text
    assert " of 2,048 MiB: weights 1 MiB" in caplog.text
    assert "8 blocks of 32: 2.0 sequences of the full 128 tokens" in caplog.text
    (made,) = set(compile_cache.iterdir()) - before
    key = json.dumps(json.loads((made / "manifest.json").read_text()))
    for wanted in ('"gather"', '"example"', '"example_compiler": "1.0"', '"branches": false'):
        assert wanted in key
    # Chosen by the environment, it finds what it has compiled; and other choices of operations give the same tokens.
    monkeypatch.setenv("XLASERVE_PLATFORM", "example")
    caplog.clear()
    with caplog.at_level(logging.INFO, "xlaserve"):
        assert generate(model) == tokens
    assert " compiled in " not in caplog.text
    assert "warning" not in caplog.text, "graphs need no more memory than was planned"
    # Nor does it matter which buckets there are; here they come from the variables of another stack.
    monkeypatch.setenv("NEURON_CONTEXT_LENGTH_BUCKETS", "64")
    monkeypatch.setenv("NEURON_TOKEN_GEN_BUCKETS", "64,128")
    caplog.clear()
    with caplog.at_level(logging.INFO, "xlaserve"):
        assert generate(model, max_num_seqs=1) == tokens
    assert {line.split()[2] for line in caplog.messages if line.startswith("graph ") and "-" in line} == {
        "context-1x64-2",
        "context-1x64-4",
        "generate-1-2",
        "generate-1-4",
    }
    monkeypatch.delenv("NEURON_CONTEXT_LENGTH_BUCKETS")
    monkeypatch.delenv("NEURON_TOKEN_GEN_BUCKETS")
    assert generate(model, device="cpu", max_num_seqs=2, max_num_batched_tokens=64, num_blocks=17) == tokens


@pytest.mark.usefixtures("installed")
def test_it_is_listed_and_tried_first() -> None:
    assert next(iter(platforms())) == "example"
    assert select_platform("example").block_size == 32


def test_without_the_package_it_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"device must be one of .*, got 'example'"):
        select_platform("example")
