"""When CUDA computes attention with its own kernel: where it is asked for, and the model, the type and the card are such that it can."""

from __future__ import annotations

import pytest

from xlaserve.buckets.targets import TARGETS, target_platform
from xlaserve.errors import ConfigError
from xlaserve.platforms.cuda import CUDA, KERNELS


def test_it_is_taken_where_it_is_asked_for() -> None:
    found = CUDA.with_kernels("native", "bfloat16", 128)
    assert (found.attention, found.kernels) == ("mosaic", KERNELS)
    assert found.reads_in_use
    assert CUDA.with_kernels("none", "bfloat16", 128) is CUDA
    untouched = CUDA.with_kernels("auto", "bfloat16", 128)
    assert (untouched.attention, untouched.kernels) == ("tiled", "none")
    assert "--kernels native" in untouched.kernels_note


@pytest.mark.parametrize(("dtype", "head_dim", "why"), [("float32", 128, "not in float32"), ("bfloat16", 80, "this model's have 80")])
def test_what_it_cannot_compute_is_named(dtype: str, head_dim: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        CUDA.with_kernels("native", dtype, head_dim)
    assert CUDA.with_kernels("auto", dtype, head_dim) is CUDA


def test_targets_have_it_by_their_card() -> None:
    found = target_platform("cuda", "h100").with_kernels("native", "bfloat16", 64)
    assert (found.attention, found.memory()) == ("mosaic", TARGETS["h100"].memory)
    with pytest.raises(ConfigError, match="there are no native kernels for NVIDIA A100"):
        target_platform("cuda", "a100").with_kernels("native", "bfloat16", 64)
    a100 = target_platform("cuda", "a100")
    assert a100.with_kernels("auto", "bfloat16", 64) is a100
