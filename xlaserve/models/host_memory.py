"""Host buffers for weights, aligned as JAX's CPU client wants them so that it takes them over and does not copy.

On CPU these are what graphs read at every step, so they lie in huge pages where the system has some: a core finds 2 MiB of memory with one
look-up instead of 512, and reads several times as much at once.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod

import numpy as np

_ALIGNMENT = 64
_HUGE = 2 << 20
_CHUNK = 64 << 20


class HostMemory:
    """Gives out buffers that do not overlap, aligned to 64 bytes. Those in huge pages come from chunks of 64 MiB and more.

    A chunk goes back to the system with the last of its arrays. What is left of it is never touched and takes part of a page.

    Args:
        huge: whether the buffers are to lie in huge pages, which only Linux gives out for the asking; else each is memory of its own.
    """

    def __init__(self, *, huge: bool) -> None:
        self._huge = huge and hasattr(mmap, "MADV_HUGEPAGE")
        self._rest = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        """A buffer for an array, with anything in it."""
        size = prod(shape) * dtype.itemsize
        room = -(-max(1, size) // _ALIGNMENT) * _ALIGNMENT
        if not self._huge:
            raw = np.empty(room + _ALIGNMENT, np.uint8)
            raw = raw[-raw.ctypes.data % _ALIGNMENT :]
        elif room <= len(self._rest):
            raw, self._rest = self._rest, self._rest[room:]
        else:
            raw = _huge_pages(max(room, _CHUNK))
            self._rest = raw[room:]
        return raw[:size].view(dtype).reshape(shape)


def _huge_pages(size: int) -> np.ndarray:
    """Bytes that begin with a huge page; pages that nobody touches take no memory."""
    mapping = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    with suppress(OSError):  # a system without them
        mapping.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(mapping, np.uint8)
    skip = -raw.ctypes.data % _HUGE
    return raw[skip : skip + size]
