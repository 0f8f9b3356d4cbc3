"""Fixtures that all tests share: tiny checkpoints, real ones, and engines that stay up for the session.

Every graph that tests compile goes to one store for the session, not to the checkout's.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tooling.tiny_models import write_tiny

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
"""Before JAX starts, for tests that split a model over devices; all others use the first one."""

_FINDINGS = pytest.StashKey[list[str]]()

TINY_ENGINE: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 64, "num_blocks": 129}
"""Sizes that make a tiny engine chunk prompts, batch and share: 128 blocks of 16 tokens."""


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's store of compiled graphs."""
    path = tmp_path_factory.mktemp("compile_cache")
    before = os.environ.get("XLASERVE_COMPILE_CACHE")
    os.environ["XLASERVE_COMPILE_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["XLASERVE_COMPILE_CACHE"]
    else:
        os.environ["XLASERVE_COMPILE_CACHE"] = before


@pytest.fixture(scope="module", autouse=True)
def forget_compiled() -> Iterator[None]:
    """Lets executables go that nobody uses any more. JAX 0.12 keeps all that a process has compiled, some 300 memory maps each, and
    LLVM crashes where the process reaches the kernel's limit (vm.max_map_count, 65530 by default): after some 200 graphs.
    """
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the tiny checkpoint of a family, once."""
    return functools.cache(lambda family: write_tiny(family, tmp_path_factory.mktemp("tiny") / family))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo model, fetched where it is not in the user's cache yet."""
    from xlaserve.models.demo import demo_gguf

    return demo_gguf()


@pytest.fixture(scope="session")
def gemma3_270m() -> Path:
    """Gemma 3 270M, fetched where it is not in the user's cache yet."""
    from tests.tooling.gemma3_270m import gemma3_270m

    return gemma3_270m()


@pytest.fixture(scope="session")
def tiny_llm(tiny_model: Callable[[str], Path]) -> Generator[Any]:
    """An engine on the tiny llama3, for tests that leave it as it was."""
    from xlaserve import LLM

    with LLM(str(tiny_model("llama3")), **TINY_ENGINE) as llm:
        yield llm


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line that the run's summary is to show: what a test counted or measured."""
    return request.config.stash.setdefault(_FINDINGS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Shows what `report` was told."""
    if findings := config.stash.get(_FINDINGS, []):
        terminalreporter.section("findings")
        for line in findings:
            terminalreporter.write_line(line)
