"""Host buffers for weights, aligned as JAX's CPU client wants them so that it takes them over and does not copy.

On CPU these are what graphs read at every step, so they lie in huge pages where the system has some: a core finds 2 MiB of memory with one
look-up instead of 512, and reads several times as much at once.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

_ALIGNMENT = 64
_HUGE = 2 << 20
_CHUNK = 64 << 20


class HostMemory:
    """Gives out buffers, one after the other; each lives as long as its array, in huge pages as long as its neighbours do.

    Args:
        huge: whether the buffers stay, and are to lie in huge pages; else each is memory of its own.
    """

    def __init__(self, *, huge: bool) -> None:
        self._huge = huge
        self._rest = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
        """A buffer for an array, with anything in it."""
        size = int(np.prod(shape)) * dtype.itemsize
        if self._huge:
            room = -(-size // _ALIGNMENT) * _ALIGNMENT
            if room > len(self._rest):
                self._rest = _huge_pages(max(room, _CHUNK))
            raw, self._rest = self._rest[:size], self._rest[room:]
        else:
            raw = np.empty(size + _ALIGNMENT, np.uint8)
            skip = -raw.ctypes.data % _ALIGNMENT
            raw = raw[skip : skip + size]
        return raw.view(dtype).reshape(shape)


def _huge_pages(size: int) -> np.ndarray:
    """Bytes that begin with a huge page; pages that nobody touches take no memory."""
    mapping = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(mapping, np.uint8)
    skip = -raw.ctypes.data % _HUGE
    return raw[skip : skip + size]
