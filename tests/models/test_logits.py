"""Logits equal those of Hugging Face transformers at every position, for every family, chunked and not, through either attention of XLA and
through the CPU kernels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.tooling.engine_logits import LogitsEngine
from tests.tooling.golden import RealGolden, compare, load_gemma3, load_smollm2, load_tiny
from tests.tooling.tiny_models import FAMILIES, checksum, tiny_config, tiny_tensors
from xlaserve.kernels.library import absence, library

TOLERANCE = 2e-3


@pytest.fixture
def kernels() -> None:
    """The library of kernels, ready to be called."""
    if library() is None:
        pytest.skip(str(absence()))


@pytest.mark.parametrize("attention", ["tiled", "gather"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_families(family: str, attention: str, tiny_model: Callable[[str], Path]) -> None:
    _check_tiny(family, LogitsEngine(tiny_model(family), attention, max_len=256), (16, 256) if attention == "tiled" else (64,))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_families_on_kernels(family: str, tiny_model: Callable[[str], Path]) -> None:
    _check_tiny(family, LogitsEngine(tiny_model(family), max_len=256, kernels=True), (16, 256))


def _check_tiny(family: str, engine: LogitsEngine, chunks: tuple[int, ...]) -> None:
    golden = load_tiny(family)
    assert checksum(tiny_tensors(family)) == golden.checksum, "the reference values were made from other weights"
    for case in golden.cases:
        for chunk in chunks:
            logits = engine.logits(case.prompt, chunk=chunk)
            assert np.abs(logits - case.logits).max() < 1e-4, (len(case.prompt), chunk)


@pytest.mark.parametrize(("family", "shards"), [("llama2", 2), ("llama3", 4), ("qwen2", 4), ("qwen3", 2), ("qwen3_moe", 2), ("gemma2", 2)])
def test_tiny_families_over_devices(family: str, shards: int, tiny_model: Callable[[str], Path]) -> None:
    """With 4 devices each of the two key heads is on two of them."""
    _check_tiny(family, LogitsEngine(tiny_model(family), max_len=256, shards=shards), (64,))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("family", "shards"), [("llama3", 4), ("gemma2", 2)])
def test_tiny_families_over_devices_on_kernels(family: str, shards: int, tiny_model: Callable[[str], Path]) -> None:
    _check_tiny(family, LogitsEngine(tiny_model(family), max_len=256, shards=shards, kernels=True), (64,))


@pytest.mark.parametrize("chunk", [16, 256])
def test_all_experts_at_once(chunk: int, tiny_model: Callable[[str], Path]) -> None:
    """As accelerators compute them: chunks by all experts, 256 tokens in two parts; single tokens by copies of the chosen ones."""
    engine = LogitsEngine(tiny_model("qwen3_moe"), max_len=256, experts="all")
    for case in load_tiny("qwen3_moe").cases:
        assert np.abs(engine.logits(case.prompt, chunk=chunk) - case.logits).max() < 1e-4, len(case.prompt)


def test_a_vocabulary_that_devices_cannot_share_evenly(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """509 rows on 4 devices: the last has 125 of the others' 128, and its logits end where the vocabulary does."""
    odd = tmp_path / "odd"
    shutil.copytree(tiny_model("llama2"), odd)
    tensors = {name: np.ascontiguousarray(tensor[:509]) for name, tensor in tiny_tensors("llama2").items()}
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    (odd / "config.json").write_text(json.dumps(tiny_config("llama2") | {"vocab_size": 509}))
    prompt = [1, 508, 127, 128, 400, 384, 383]
    whole, split = (LogitsEngine(odd, max_len=16, shards=shards).logits(prompt, chunk=16, generated=0) for shards in (1, 4))
    assert split.shape == whole.shape == (len(prompt), 509)
    assert np.abs(split - whole).max() < 1e-5


def test_smollm2(smollm2: Path) -> None:
    golden = load_smollm2()
    assert max(len(case.prompt) for case in golden.prompts) == 1500
    assert len(golden.prompts) == 10
    _check_real(golden, LogitsEngine(smollm2))


@pytest.mark.usefixtures("kernels")
def test_smollm2_on_kernels(smollm2: Path) -> None:
    _check_real(load_smollm2(), LogitsEngine(smollm2, kernels=True))


def test_gemma3_270m(gemma3_270m: Path) -> None:
    golden = load_gemma3()
    assert max(len(case.prompt) for case in golden.prompts) > 600  # longer than its sliding window
    _check_real(golden, LogitsEngine(gemma3_270m))


def _check_real(golden: RealGolden, engine: LogitsEngine) -> None:
    for case in golden.prompts:
        difference = compare(case.summary, engine.logits(case.prompt, chunk=512 if len(case.prompt) > 64 else 64))
        assert difference.largest < TOLERANCE, case.name
        assert difference.projections < TOLERANCE, case.name
        assert difference.argmax_equal == difference.positions, case.name
