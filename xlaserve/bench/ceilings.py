"""What a device can do at most, measured on the spot: bytes a second that it reads, and operations a second of a large matrix product.

Each is tried in several ways, and the best run of the best way counts: a ceiling that is too low would flatter what is held against it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlaserve.bench.spread import Spread
from xlaserve.kernels.library import open_library
from xlaserve.platforms.cpu import usable_cores
from xlaserve.platforms.platform import Device

RUNS = 5
_ROW = 4096


@dataclass(frozen=True, slots=True)
class Probe:
    """One way to measure a ceiling.

    Args:
        name: for a person.
        amount: bytes, or operations, of one run.
        run: does it once, and returns when it is done.
    """

    name: str
    amount: float
    run: Callable[[], object]

    def rate(self) -> float:
        """Bytes or operations a second of one run."""
        began = time.perf_counter()
        self.run()
        return self.amount / (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What was measured.

    Args:
        rates: by the name of the way: bytes or operations a second of every run.
    """

    rates: dict[str, Spread]

    @property
    def best(self) -> float:
        """The highest rate of all."""
        return max(spread.high for spread in self.rates.values())

    @property
    def best_way(self) -> str:
        """The way that gave it."""
        return max(self.rates, key=lambda name: self.rates[name].high)

    @property
    def usual_way(self) -> str:
        """The way that is mostly the fastest."""
        return max(self.rates, key=lambda name: self.rates[name].median)

    def joined(self, other: Ceiling) -> Ceiling:
        """Both measurements of the same ways as one."""
        return Ceiling({name: Spread(spread.values + other.rates[name].values) for name, spread in self.rates.items()})

    def as_json(self) -> dict[str, Any]:
        """The ceiling, and how every way came out."""
        return {"best": self.best, "best_way": self.best_way, "ways": {name: spread.as_json() for name, spread in self.rates.items()}}


def measure(probes: Iterable[Probe], runs: int = RUNS) -> Ceiling:
    """Run every probe once for nothing and then a few times."""
    found: dict[str, Spread] = {}
    for probe in probes:
        probe.run()
        found[probe.name] = Spread(tuple(probe.rate() for _ in range(runs)))
    return Ceiling(found)


def bandwidth_probes(device: Device, size: int) -> list[Probe]:
    """Ways to read memory: through small compiled graphs, and on CPU through numpy with a thread for each core and through the kernels' own
    threads, where these are built.

    A copy counts what it reads and what it writes.

    Args:
        device: whose memory.
        size: bytes to read; many times what its caches hold.
    """
    rows = max(1, size // (_ROW * 4))
    host = np.ones((rows, _ROW), np.float32)
    array = jax.device_put(host, device)
    vector = jax.device_put(np.ones(_ROW, np.float32), device)
    probes = [
        Probe("xla: matrix times vector", host.nbytes, _compiled(lambda a, v: a @ v, array, vector)),
        Probe("xla: sum", host.nbytes, _compiled(jnp.sum, array)),
        Probe("xla: copy", 2.0 * host.nbytes, _compiled(lambda a: a + 1, array)),
    ]
    if device.platform == "cpu":
        probes.append(Probe("numpy: dot, threads", host.nbytes, _threaded_dots(host)))
        library = open_library()
        if not isinstance(library, str):
            probes.append(Probe("native: read", host.nbytes, lambda: library.read(host)))
    return probes


def gemm_probes(device: Device, dtypes: Sequence[str], size: int) -> list[Probe]:
    """Ways to multiply two square matrices: through a compiled graph in each type, and on CPU through numpy's BLAS.

    Args:
        device: where.
        dtypes: NumPy names; products of int8 are added up in int32.
        size: rows and columns.
    """
    operations = 2.0 * size**3
    probes: list[Probe] = []
    for dtype in dtypes:
        square = jax.device_put(np.ones((size, size), np.float32), device).astype(dtype)
        wide = jnp.int32 if dtype == "int8" else None
        probes.append(
            Probe(f"xla: {dtype}", operations, _compiled(lambda a, wide=wide: jnp.matmul(a, a, preferred_element_type=wide), square))
        )
    if device.platform == "cpu":
        host = np.random.default_rng(0).random((size, size), np.float32)
        probes.append(Probe("numpy: float32", operations, lambda: host @ host))
    return probes


def _compiled(function: Callable[..., Any], *arguments: jax.Array) -> Callable[[], object]:
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def _threaded_dots(array: np.ndarray) -> Callable[[], object]:
    """Each thread multiplies its part with itself: BLAS reads it once and lets go of Python's lock."""
    threads = usable_cores() or 1
    parts = np.array_split(array.reshape(-1), 4 * threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: np.dot(part, part), parts))
