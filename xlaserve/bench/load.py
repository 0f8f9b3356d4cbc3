"""Puts requests to a server when they are due, no more at once than allowed, and keeps a record of every single one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from xlaserve.bench.record import RequestRecord
from xlaserve.bench.workload import WorkItem

Send = Callable[[WorkItem, RequestRecord], Awaitable[None]]
"""Sends one request and fills in its record, which ends it too; errors go into the record."""


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What came of a load.

    Args:
        records: of every request, in the order in which they were due.
        began: when the first was due.
        ended: when the last had ended.
        peak: most requests that were under way at once.
    """

    records: list[RequestRecord]
    began: float
    ended: float
    peak: int

    @property
    def duration(self) -> float:
        """Seconds from the first request until the last answer, failed ones included."""
        return self.ended - self.began


async def run_load(send: Send, items: Sequence[WorkItem], arrivals: Sequence[float], max_concurrency: int | None) -> LoadRun:
    """Send every request when it is due.

    Args:
        send: sends one.
        items: the requests.
        arrivals: seconds from the beginning to when each is due, rising.
        max_concurrency: most requests under way at once; those that are due wait their turn. None for no limit.
    """
    places = asyncio.Semaphore(max_concurrency or len(items) or 1)
    records = [RequestRecord(item.prompt_len, item.output_len) for item in items]
    under_way = peak = 0

    async def one(item: WorkItem, record: RequestRecord) -> None:
        nonlocal under_way, peak
        async with places:
            under_way += 1
            peak = max(peak, under_way)
            try:
                await send(item, record)
            finally:
                under_way -= 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for item, record, arrival in zip(items, records, arrivals, strict=True):
            record.planned = began + arrival
            while (left := record.planned - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            tasks.create_task(one(item, record))
    return LoadRun(records, began, max((record.ended for record in records), default=began), peak)
