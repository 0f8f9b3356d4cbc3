"""The hook for native attention kernels, with a stand-in for a kernel."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.buckets.lint.lowered import facts, lint, said, subjects
from xlaserve.buckets.lint.stablehlo import parse_stablehlo
from xlaserve.errors import ConfigError
from xlaserve.paged.attention import PagedKV, StepShape
from xlaserve.paged.native_attention import find_kernel, register_kernel

CALLS: list[Any] = []
FILE = Path(__file__)


def stand_in(operands: tuple[jax.ShapeDtypeStruct, ...], *, window: int | None, softcap: float | None) -> str:
    CALLS.append(([o.shape for o in operands], window, softcap))
    return base64.b64encode(json.dumps({"klir_binary": {"binary": str(FILE)}, "window": window}).encode()).decode()


register_kernel("stand-in", stand_in)


def attend(kind: str) -> Any:
    def run(q: Any, k: Any, v: Any, kv: tuple[Any, Any], tables: Any, positions: Any) -> Any:
        cache = PagedKV([kv], StepShape(positions, tables, 16), kind)
        return cache.attend(0, q, k, v, scale=0.3, window=20, softcap=None)

    return run


def arguments() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    kv = floats(9, 2, 16, 8), floats(9, 2, 16, 8)
    return (
        floats(2, 1, 4, 8),
        floats(2, 1, 2, 8),
        floats(2, 1, 2, 8),
        kv,
        np.array([[1, 2], [3, 4]], np.int32),
        np.array([[30], [7]], np.int32),
    )


def test_elsewhere_the_reference_takes_its_place() -> None:
    native, gathered = (np.asarray(jax.jit(attend(kind))(*arguments())) for kind in ("stand-in", "gather"))
    assert np.array_equal(native, gathered)
    assert CALLS[-1] == ([(2, 2, 2, 8), (9, 2, 16, 8), (9, 2, 16, 8), (2, 2), (2, 1)], 20, None)


def test_for_neuron_it_is_one_custom_call_and_passes_the_lint() -> None:
    lowered = jax.jit(attend("stand-in")).trace(*arguments()).lower(lowering_platforms=("neuron",))
    text = lowered.as_text()
    assert text.count("AwsNeuronCustomNativeKernel") == 1
    assert "exponential" not in text, "the softmax is in the kernel"
    report = lint(subjects(lowered.compiler_ir("stablehlo"), None))
    assert not said(report, "N08")
    missing = lowered.as_text().replace(stand_in_config(), base64.b64encode(b'{"klir_binary": {"binary": "/nowhere"}}').decode())
    assert said(lint(subjects(parse_stablehlo(missing), facts())), "N08") == {"error": ("stablehlo", "hlo")}


def stand_in_config() -> str:
    return stand_in((), window=20, softcap=None)


def test_a_kernel_that_nobody_brings() -> None:
    with pytest.raises(ConfigError, match="There is no attention kernel 'other', only tiled, gather, mosaic, stand-in"):
        find_kernel("other")
    with pytest.raises(ConfigError, match="no attention kernel"):
        PagedKV([], StepShape(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32), 16), "other")


def test_a_name_is_taken_once() -> None:
    register_kernel("stand-in", stand_in)
    with pytest.raises(ConfigError, match="exists already"):
        register_kernel("stand-in", lambda operands, *, window, softcap: "")
    with pytest.raises(ConfigError, match="exists already"):
        register_kernel("gather", stand_in)
