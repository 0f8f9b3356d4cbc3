"""Many clients that ask for long answers and give up soon, and what is left of that: exit status 0 where all checks hold, else 1.

    python -m benchmarks.storm MODEL [--clients 200] [--tokens 10000] [--patience 0.5] [--readers 8] [SERVE FLAGS ...]

All clients of a wave ask at once, half of them for streams, and hang up when their patience ends. Then a normal request is timed, and the
time until nothing runs, waits or holds KV blocks. Some more clients read nothing of their streams all along. The model must be as long as
the answers. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak import Metrics, growth, idle, request, resident, scrape, serving

WAVES = 10
"""Memory is read after each. In the first third, caches and allocators fill up."""

GROWTH_KIB = 512
"""How much a process may grow, resident, in the middle one of the waves after those.

Seen were 0 to 350 KiB, which end some fifteen waves on, and 720 in the engine when it was made to forget no sequence, 200 a wave.
"""

AT_ONCE = 5.0
"""Seconds that a normal request may take after a wave, on a machine that others use too."""


@dataclass
class Storm:
    """What happened, and what was found wrong."""

    quiet: float = 0.0  # seconds of a normal request before all
    after: list[float] = field(default_factory=list[float])  # of one right after each wave
    freed: list[float] = field(default_factory=list[float])  # seconds from the end of a wave until no KV block is in use
    running: int = 0  # most sequences that were seen running
    read: int = 0  # bytes that clients read
    memory: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    metrics: Metrics = field(default_factory=lambda: Metrics([]))
    checks: dict[str, bool] = field(default_factory=dict[str, bool])

    @property
    def failures(self) -> list[str]:
        """The checks that do not hold."""
        return [name for name, holds in self.checks.items() if not holds]

    def table(self) -> str:
        """The whole for a person."""
        finished = self.metrics.by("request_success_total", "finished_reason")
        lines = [
            f"a normal request takes {self.quiet:.2f} s; right after the waves " + seconds(self.after),
            "no KV block is in use after " + seconds(self.freed),
            f"at most {self.running} sequences ran; ended: " + ", ".join(f"{reason} {count:.0f}" for reason, count in finished.items()),
        ]
        for name, values in self.memory.items():
            lines.append(f"resident memory of the {name}, MiB: " + ", ".join(f"{value / 1024:.1f}" for value in values))
        return "\n".join([*lines, *(f"{'ok' if holds else 'FAILED':<8}{name}" for name, holds in self.checks.items())])


def seconds(values: Sequence[float]) -> str:
    """For a person."""
    return ", ".join(f"{value:.2f}" for value in values) + " s"


async def ask(port: int, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request on a connection of its own. The reader's small limit leaves what is not read to the sockets."""
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: storm\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
    await writer.drain()
    return reader, writer


async def impatient(port: int, body: dict[str, Any], patience: float) -> int:
    """Read for so many seconds, and hang up: the number of bytes read."""
    read = 0
    reader, writer = await ask(port, body)
    try:
        async with asyncio.timeout(patience):
            while data := await reader.read(1 << 16):
                read += len(data)
    except TimeoutError:
        pass
    finally:
        writer.close()
    return read


async def normal(port: int) -> float:
    """Seconds of a short request, answered in full."""
    began = time.perf_counter()
    answer = await request(port, {"prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True})
    assert answer.status == 200, answer
    assert answer.events[0]["usage"]["completion_tokens"] == 8
    return time.perf_counter() - began


async def waves(storm: Storm, port: int, pids: dict[str, int], clients: int, tokens: int, patience: float, readers: int) -> None:
    """The whole storm."""
    storm.quiet = statistics.median([await normal(port) for _ in range(5)])
    storm.memory = {name: [resident(pid)] for name, pid in pids.items()}
    long = {"max_tokens": tokens, "ignore_eos": True, "logprobs": 5}
    for wave in range(WAVES):
        # These are streams that nobody reads, and they end with the wave.
        lazy = [await ask(port, {**long, "prompt": [9, number], "stream": True}) for number in range(readers)]
        bodies = [{**long, "prompt": [5 + number % 400, wave], "stream": number % 2 == 0} for number in range(clients)]
        crowd = [asyncio.create_task(impatient(port, body, patience)) for body in bodies]
        await asyncio.sleep(patience / 2)
        storm.running = max(storm.running, int((await scrape(port)).total("num_requests_running")))
        storm.read += sum(await asyncio.gather(*crowd))
        for _, writer in lazy:
            writer.close()
        ended = time.perf_counter()
        storm.after.append(await normal(port))
        storm.metrics = await idle(port)
        storm.freed.append(time.perf_counter() - ended)
        for name, pid in pids.items():
            storm.memory[name].append(resident(pid))


def judge(storm: Storm) -> None:
    """Draw the conclusions."""
    value = storm.metrics.total
    finished = storm.metrics.by("request_success_total", "finished_reason")
    storm.checks = {
        "a normal request is answered at once after each wave": max(storm.after) < AT_ONCE,
        "KV usage is 0": value("kv_cache_usage_perc") == 0,
        "nothing runs or waits": value("num_requests_running") == value("num_requests_waiting") == 0,
        "requests ran, and were aborted when their clients went": storm.running > 0 and finished.get("abort", 0) > 0,
        "none has failed": not finished.get("error"),
        "some read a part of their answers": storm.read > 0,
        "nothing was compiled": value("compile_events_total") == 0,
        "the engine never stalled": value("stalls_total") == 0,
    }
    for name, values in storm.memory.items():
        storm.checks[f"the {name}'s memory is flat"] = growth(values) < GROWTH_KIB


def run(
    model: str,
    flags: Sequence[str],
    *,
    clients: int,
    tokens: int,
    patience: float,
    readers: int,
    command: Sequence[str] = (sys.executable, "-m", "xlaserve"),
) -> Storm:
    """Storm a server.

    Args:
        model: as `xlaserve serve` takes it; token ids 4 to 499 must be in its vocabulary.
        flags: of serve.
        clients: of each wave.
        tokens: that each asks for.
        patience: seconds until it hangs up.
        readers: clients besides that read nothing.
        command: runs xlaserve.
    """
    storm = Storm()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with serving(model, log, command, flags) as (port, pids):
            asyncio.run(waves(storm, port, pids, clients, tokens, patience, readers))
        judge(storm)
        lines = [line for line in log.read_text().splitlines() if "stopping" not in line]
        storm.checks["the log is empty" + "".join(f"\n        {line}" for line in lines[:20])] = not lines
    return storm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--patience", type=float, default=0.5)
    parser.add_argument("--readers", type=int, default=8)
    args, flags = parser.parse_known_args()
    storm = run(
        args.model,
        ["--log-level=warning", *flags],
        clients=args.clients,
        tokens=args.tokens,
        patience=args.patience,
        readers=args.readers,
    )
    print(storm.table())
    return 1 if storm.failures else 0


if __name__ == "__main__":
    sys.exit(main())
