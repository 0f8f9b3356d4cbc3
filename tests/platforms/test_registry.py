"""Platforms: found by name, refused with what to do, and open to third parties."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import jax
import pytest

from xlaserve.errors import ConfigError
from xlaserve.platforms import cpu as cpu_module
from xlaserve.platforms import registry
from xlaserve.platforms.cpu import CPU
from xlaserve.platforms.cuda import CUDA
from xlaserve.platforms.neuron import NEURON
from xlaserve.platforms.platform import Platform
from xlaserve.platforms.registry import platforms, select_platform

ABSENT = Platform("toy", "no_such_backend", "float32", 16, 8, 64, "tiled", True, "sort", "Install the toy with `pip install toy`.")
PRESENT = Platform("toy", "cpu", "float32", 32, 8, 64, "gather", False, "neuron", "")


def offer(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Entry points of other packages."""
    points = EntryPoints(EntryPoint(name, value, "xlaserve.platforms") for name, value in values.items())

    def entry_points(*, group: str) -> EntryPoints:
        assert group == "xlaserve.platforms"
        return points

    monkeypatch.setattr(registry, "entry_points", entry_points)


def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX as it is on a machine without accelerators."""
    real = jax.devices

    def devices(backend: str | None = None) -> list[Any]:
        if backend != "cpu":
            raise RuntimeError(f"Unknown backend {backend}")
        return real("cpu")

    monkeypatch.setattr(jax, "devices", devices)


def test_the_built_in_platforms() -> None:
    known = platforms()
    assert {"cpu": CPU, "cuda": CUDA, "neuron": NEURON}.items() <= known.items()
    assert list(known)[-1] == "cpu", "accelerators are tried first"


def test_defaults() -> None:
    assert (CPU.block_size, CUDA.block_size, NEURON.block_size) == (16, 16, 128)
    assert (CPU.dtype, CUDA.dtype, NEURON.dtype) == ("float32", "bfloat16", "bfloat16")
    assert (NEURON.attention, NEURON.branches) == ("gather", False), "graphs for Neuron hold no control flow"
    assert NEURON.top_k == "neuron", "nor a sort"
    for platform in (CPU, CUDA, NEURON):
        assert platform.max_num_batched_tokens >= platform.max_num_seqs + platform.block_size - 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"device must be one of .*neuron.*cuda.*cpu.*, got 'tpu'"):
        select_platform("tpu")


@pytest.mark.parametrize(("name", "remedy"), [("cuda", r"pip install 'xlaserve\[cuda13\]'"), ("neuron", "neuron-ls")])
def test_an_absent_platform_says_what_to_install(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    with pytest.raises(ConfigError, match=rf"Platform '{name}' has no device here: Unknown backend {name}.*{remedy}"):
        select_platform(name)


def test_without_a_name_the_first_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    assert select_platform(None) is CPU
    offer(monkeypatch, toy=f"{__name__}:ABSENT")
    assert select_platform(None) is CPU


def test_a_third_party_adds_a_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    offer(monkeypatch, toy=f"{__name__}:PRESENT", cpu=f"{__name__}:ABSENT")
    known = platforms()
    assert next(iter(known)) == "toy"
    assert known["cpu"] is CPU, "what is built in is not replaced"
    assert select_platform("toy").block_size == 32
    assert select_platform(None).name == "toy"
    with pytest.raises(ConfigError, match="one of toy, neuron, cuda, cpu"):
        select_platform("tpu")


def test_a_third_party_that_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy=f"{__name__}:ABSENT")
    with pytest.raises(ConfigError, match=r"'toy' has no device here.*pip install toy"):
        select_platform("toy")


@pytest.mark.parametrize("value", ["no_such_package.here:PLATFORM", f"{__name__}:no_such_name"])
def test_a_broken_third_party_stops_nobody_else(value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    only_cpu(monkeypatch)
    offer(monkeypatch, broken=value)
    assert select_platform("cpu") is CPU
    assert select_platform(None) is CPU
    assert "broken" in caplog.text
    with pytest.raises(ConfigError, match="got 'broken'"):
        select_platform("broken")


def test_the_package_offers_its_own_platforms_as_entry_points() -> None:
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]["xlaserve.platforms"]
    assert {name: EntryPoint(name, value, "g").load() for name, value in declared.items()} == {"cpu": CPU, "cuda": CUDA, "neuron": NEURON}


def test_cpu_gives_kv_a_sixteenth_within_bounds_unless_a_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    for total, wanted in ((gib, gib // 4), (16 * gib, gib), (512 * gib, 4 * gib)):
        monkeypatch.setattr(cpu_module, "total_memory", lambda total=total: total)
        assert CPU.kv_limit(None) == wanted
        assert CPU.kv_limit(0.5) is None
        assert (CPU.planned_memory(None), CPU.planned_memory(0.5)) == (int(total * 0.9), total // 2)
    monkeypatch.undo()
    assert 0 < cpu_module.total_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("limit", "wanted"), [("max", None), ("1000", 1000)])
def test_cpu_memory_is_the_control_groups_where_that_is_lower(
    limit: str, wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(cpu_module, "_GROUPS", tmp_path)
    free = cpu_module.total_memory()
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert cpu_module.total_memory() == (wanted or free)


def test_cpu_memory_is_the_lowest_of_the_groups_around_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.slice" / "b.service").mkdir(parents=True)
    (tmp_path / "a.slice" / "memory.max").write_text("5000\n")
    (tmp_path / "a.slice" / "b.service" / "memory.max").write_text("max\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/a.slice/b.service\n")
    monkeypatch.setattr(cpu_module, "_GROUPS", tmp_path)
    monkeypatch.setattr(cpu_module, "_OWN_GROUP", own)
    assert cpu_module.total_memory() == 5000


class Device:
    """A device that reports its memory as accelerators do."""

    device_kind = "toy 1"

    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


def test_an_accelerators_memory_is_what_its_client_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda _name: [Device({"bytes_limit": 1000})])
    assert (PRESENT.memory(), PRESENT.planned_memory(None), PRESENT.planned_memory(0.5)) == (1000, 900, 500)
    assert PRESENT.kv_limit(None) is None


@pytest.mark.parametrize("stats", [None, {}])
def test_an_accelerator_that_tells_nothing(stats: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda _name: [Device(stats)])
    assert (CUDA.memory(), CUDA.planned_memory(0.5)) == (None, None)


def test_an_absent_platform_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    assert CUDA.memory() is None


def test_cudas_client_takes_the_share_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own choice would be three quarters of the card; what it has taken is what there is to plan with."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setattr(jax, "devices", lambda _name: [Device({"bytes_limit": 64000})])
    select_platform("cuda", 0.5)
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5000"
    assert CUDA.planned_memory(0.5) == 63000
    select_platform("cuda", 0.7)
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5000", "what is set stays"


def test_cpu_executables_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CPU.fingerprint()
    assert before == CPU.fingerprint()
    assert {"device_kind", "platform_version", "cpu_features", "cores"} <= set(before)
    monkeypatch.setattr(cpu_module, "cpu_features", lambda: ["other"])
    assert CPU.fingerprint() != before
