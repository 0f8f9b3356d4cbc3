"""Buffers for weights: aligned, apart from each other, in huge pages where there are some, and given back with their arrays."""

from __future__ import annotations

import gc
import mmap
import sys
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.models.host_memory import HostMemory

SHAPES = [(3, 5), (), (1,), (0,), (64,), (0, 7), (7, 0), (65, 1), (1000, 333), (2, 3, 5), (4096, 1024)]
DTYPES = [np.dtype(np.int8), np.dtype(jnp.bfloat16), np.dtype(np.float32), np.dtype(np.int32)]
HUGE = 2 << 20
CHUNK = 64 << 20
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def some(memory: HostMemory) -> list[np.ndarray]:
    return [memory.empty(shape, dtype) for _ in range(4) for dtype in DTYPES for shape in SHAPES]


def place(array: np.ndarray) -> range:
    return range(array.ctypes.data, array.ctypes.data + array.nbytes)


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping at an address."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            here = begin <= address < end
        elif here and first == "AnonHugePages:":
            return int(rest[0]) << 10
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("huge", [True, False])
def test_buffers_are_aligned_and_of_what_was_asked_for(huge: bool) -> None:
    memory = HostMemory(huge=huge)
    for array, (dtype, shape) in zip(some(memory), 4 * [(dtype, shape) for dtype in DTYPES for shape in SHAPES], strict=True):
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable


@pytest.mark.parametrize("huge", [True, False])
def test_buffers_do_not_overlap(huge: bool) -> None:
    """More of them than a chunk holds, so that some begin another."""
    memory = HostMemory(huge=huge)
    arrays = [*some(memory), *some(memory), memory.empty((CHUNK + 1,), np.dtype(np.int8)), *some(memory)]
    assert sum(array.nbytes for array in arrays) > 3 * CHUNK
    places = sorted((place(array) for array in arrays if array.size), key=lambda place: place.start)
    for one, next_one in pairwise(places):
        assert one.stop <= next_one.start
    written = [array for array in arrays if array.nbytes <= HUGE]
    for number, array in enumerate(written):
        array.fill(number % 127)
    for number, array in enumerate(written):
        assert (array == number % 127).all()


def test_a_buffer_may_be_larger_than_a_chunk() -> None:
    memory = HostMemory(huge=True)
    before, large, after = (memory.empty((size,), np.dtype(np.int8)) for size in (100, CHUNK + 5 * HUGE + 1, 100))
    large[[0, -1]] = 1, 2
    before.fill(3)
    after.fill(4)
    assert (large[0], large[-1]) == (1, 2)


@linux
def test_memory_goes_back_with_the_last_array() -> None:
    gc.collect()
    memory, before = HostMemory(huge=True), resident()
    arrays = [memory.empty((CHUNK // 4,), np.dtype(np.int8)) for _ in range(8)]
    assert resident() - before < CHUNK // 4, "what nobody has touched is not there yet"
    for array in arrays:
        array.fill(1)
    assert resident() - before > 7 / 4 * CHUNK
    del memory, array
    arrays[1:] = []
    assert resident() - before < 5 / 4 * CHUNK, "a chunk lives as long as one of its arrays, and no other does"
    assert (arrays.pop() == 1).all()
    assert resident() - before < CHUNK // 4


@linux
def test_buffers_lie_in_huge_pages_where_there_are_some() -> None:
    """Small ones too, which a system by itself gives none."""
    if not _ENABLED.exists() or "[never]" in _ENABLED.read_text():
        pytest.skip(f"this system has no transparent huge pages ({_ENABLED})")
    memory = HostMemory(huge=True)
    arrays = [memory.empty((HUGE // 8,), np.dtype(np.int8)) for _ in range(64)]
    for array in arrays:
        array.fill(1)
    found = huge_bytes(arrays[0].ctypes.data)
    if not found:
        pytest.skip("this system gives out no huge pages, although it says that it has some: there are none left, or it only says so")
    assert found >= 7 * HUGE, "8 of them are full, and memory may be short of some"


def test_without_huge_pages_each_is_memory_of_its_own() -> None:
    memory = HostMemory(huge=False)
    one, other = (memory.empty((100,), np.dtype(np.int8)) for _ in range(2))
    assert one.base is not other.base
    taken = HostMemory(huge=True)
    one, other = (taken.empty((100,), np.dtype(np.int8)) for _ in range(2))
    assert (one.base is other.base) == hasattr(mmap, "MADV_HUGEPAGE")


def test_systems_that_cannot_be_asked_for_huge_pages_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no such mappings at all, macOS no such request."""
    for name in ("MADV_HUGEPAGE", "MAP_PRIVATE", "MAP_ANONYMOUS"):
        monkeypatch.delattr(mmap, name, raising=False)
    one, other = (HostMemory(huge=True).empty((100,), np.dtype(np.float32)) for _ in range(2))
    assert one.base is not other.base
    assert one.ctypes.data % 64 == 0


def test_a_kernel_without_huge_pages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("here nobody asks")
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)  # refused, as the request is where a kernel was built without
    array = HostMemory(huge=True).empty((100,), np.dtype(np.float32))
    array.fill(1)
    assert (array == 1).all()
