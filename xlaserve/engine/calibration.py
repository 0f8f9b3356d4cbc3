"""Gives a ladder the costs that its choices rest on: read from the graph store, or measured once and kept there.

Costs are measured once for each store, not at each start: the same buckets are chosen from start to start, and by all who share a store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from xlaserve.buckets.ladder import Bucket, Ladder
from xlaserve.buckets.store import GraphStore
from xlaserve.errors import ArtifactError


def calibrate(
    ladder: Ladder,
    stores: Sequence[GraphStore],
    executables: Mapping[str, str],
    measure: Callable[[], dict[Bucket, int]],
    progress: Callable[[str], None],
) -> Ladder:
    """The ladder with measured costs. A store that cannot be read or written is a note in the progress line.

    Args:
        ladder: the buckets.
        stores: where costs may be known; what is measured is kept in the last. None where executables cannot be told apart.
        executables: the sha256 of each bucket's executable, by the bucket's name.
        measure: gives the nanoseconds of one run of each bucket; called where no store has them.
        progress: told where the costs come from.
    """
    costs, note = _load(stores, executables)
    if costs is not None:
        progress(f"costs of {len(executables)} graphs are known")
    else:
        begin = time.monotonic()
        measured = {bucket.name: cost for bucket, cost in measure().items()}
        seconds = time.monotonic() - begin
        # Another process may have measured meanwhile: whoever was first counts for all.
        costs, _ = _load(stores, executables)
        if costs is None:
            costs = measured
            try:
                for store in stores[-1:]:
                    store.save_costs(costs, executables)
            except OSError as error:
                note = f" (cannot be kept: {error})"
        low, high = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
        span = f"{low} {costs[low] / 1e6:,.1f} ms to {high} {costs[high] / 1e6:,.1f} ms"
        progress(f"costs of {len(executables)} graphs measured in {seconds:.1f} s: {span}{note}")
    return replace(ladder, costs={bucket: costs[bucket.name] for bucket in ladder.buckets})


def _load(stores: Sequence[GraphStore], executables: Mapping[str, str]) -> tuple[dict[str, int] | None, str]:
    """Kept costs and a note: None where there are none, with the reason where there should be."""
    note = ""
    for store in stores:
        try:
            if (costs := store.load_costs(executables)) is not None:
                return costs, ""
        except ArtifactError as error:
            note = f" ({error})"
    return None, note
