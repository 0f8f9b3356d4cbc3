"""Gives a ladder the costs that its choices rest on: read from the graph store, or measured once and kept there.

Costs are measured once for each store, not at each start: the same buckets are chosen from start to start, and by all who share a store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from xlaserve.buckets.ladder import Bucket, Ladder
from xlaserve.buckets.store import GraphStore
from xlaserve.errors import ArtifactError


def calibrate(ladder: Ladder, store: GraphStore, measure: Callable[[], dict[Bucket, int]], progress: Callable[[str], None]) -> Ladder:
    """The ladder with measured costs. A store that cannot be read or written is a note in the progress line.

    Args:
        ladder: the buckets.
        store: where their graphs are kept.
        measure: gives the nanoseconds of one run of each bucket; called where the store does not have them.
        progress: told where the costs come from.
    """
    names = [bucket.name for bucket in ladder.buckets]
    costs, note = _load(store, names)
    if costs is not None:
        progress(f"costs of {len(names)} graphs are known")
    else:
        begin = time.monotonic()
        measured = {bucket.name: cost for bucket, cost in measure().items()}
        seconds = time.monotonic() - begin
        # Another process may have measured meanwhile: whoever was first counts for all.
        costs, _ = _load(store, names)
        if costs is None:
            costs = measured
            try:
                store.save_costs(costs)
            except (ArtifactError, OSError) as error:
                note = f" (cannot be kept: {error})"
        low, high = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
        span = f"{low} {costs[low] / 1e6:,.1f} ms to {high} {costs[high] / 1e6:,.1f} ms"
        progress(f"costs of {len(names)} graphs measured in {seconds:.1f} s: {span}{note}")
    return replace(ladder, costs={bucket: costs[bucket.name] for bucket in ladder.buckets})


def _load(store: GraphStore, names: list[str]) -> tuple[dict[str, int] | None, str]:
    """Kept costs and a note: None where there are none, with the reason where there should be."""
    try:
        return store.load_costs(names), ""
    except ArtifactError as error:
        return None, f" ({error})"
