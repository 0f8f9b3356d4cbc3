"""When CUDA computes attention with its own kernel: where it is asked for, and the model, the type and the card are such that it can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xlaserve.buckets.targets import TARGETS, target_platform
from xlaserve.errors import ConfigError
from xlaserve.platforms.cuda import CUDA, KERNELS, CUDAPlatform


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


def test_the_card_that_is_here_matters_where_it_is_the_one_to_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDAPlatform, "devices", lambda _: [SimpleNamespace(compute_capability="8.0")])
    with pytest.raises(ConfigError, match=r"for compute capability 9\.0, and this card has 8\.0"):
        CUDA.with_kernels("native", "bfloat16", 64)
    assert CUDA.with_kernels("native", "bfloat16", 64, here=False).attention == "mosaic"
    assert target_platform("cuda", "h100").with_kernels("native", "bfloat16", 64).attention == "mosaic"
