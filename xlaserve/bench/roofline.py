"""The roofline (Williams, Waterman & Patterson, 2009): what a run takes at the device's ceilings, and how near a measured one comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xlaserve.bench.graph_work import GraphWork


@dataclass(frozen=True, slots=True)
class Roofline:
    """One graph's run against the ceilings.

    Args:
        work: what it must do at least.
        seconds: what it took.
        bandwidth: bytes a second that the device reads at most.
        flop_rate: floating-point operations a second that it does at most.
    """

    work: GraphWork
    seconds: float
    bandwidth: float
    flop_rate: float

    @property
    def byte_rate(self) -> float:
        """Bytes a second that the run moved."""
        return self.work.bytes / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Floating-point operations a second that the run did."""
        return self.work.flops / self.seconds

    @property
    def bandwidth_share(self) -> float:
        """Share of the bandwidth."""
        return self.byte_rate / self.bandwidth

    @property
    def flop_share(self) -> float:
        """Share of the rate of operations."""
        return self.flops_per_second / self.flop_rate

    @property
    def binds(self) -> str:
        """Which ceiling the run meets first."""
        return "bandwidth" if self.bandwidth_share >= self.flop_share else "compute"

    @property
    def least_seconds(self) -> float:
        """What a run takes that reaches the ceiling which binds it, with everything else done meanwhile."""
        return max(self.work.bytes / self.bandwidth, self.work.flops / self.flop_rate)

    @property
    def share(self) -> float:
        """Share of the roofline that the run reached."""
        return self.least_seconds / self.seconds

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            **self.work._asdict(),
            "bytes": self.work.bytes,
            "flops": self.work.flops,
            "bytes_per_s": self.byte_rate,
            "bandwidth_share": self.bandwidth_share,
            "flops_per_s": self.flops_per_second,
            "flop_share": self.flop_share,
            "binds": self.binds,
            "least_s": self.least_seconds,
            "roofline_share": self.share,
        }
