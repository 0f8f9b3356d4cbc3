"""CPU time of serving one streamed token, by process: `xlaserve serve` on a small model, many streams at once, over real sockets.

    python benchmarks/sse_cost.py MODEL [--streams 32] [--tokens 200] [--repeats 5] [SERVE FLAGS ...]

The model should be tiny, so that the engine's own work is small. Needs Linux (/proc). Prints medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args, flags = parser.parse_known_args()
    command = [sys.executable, "-m", "xlaserve", "serve", "--port=0", "--log-level=warning", args.model, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(re.search(r"http://[^:]+:(\d+)", process.stdout.readline())[1])  # type: ignore[index]
        while "    -d " not in process.stdout.readline():
            pass
        try:
            asyncio.run(crowd(port, args.streams, 20))
            rows: dict[str, list[float]] = {}
            for _ in range(args.repeats):
                before, began = cpu_seconds(process.pid), time.perf_counter()
                asyncio.run(crowd(port, args.streams, args.tokens))
                wall, after = time.perf_counter() - began, cpu_seconds(process.pid)
                tokens = args.streams * args.tokens
                for name in after:
                    rows.setdefault(f"CPU of the {name} process", []).append((after[name] - before[name]) / tokens * 1e6)
                rows.setdefault("wall", []).append(wall / tokens * 1e6)
        finally:
            process.terminate()
    for name, values in rows.items():
        print(f"{name:<26} {statistics.median(values):7.1f} us a token   ({min(values):.1f} to {max(values):.1f})")


async def crowd(port: int, streams: int, tokens: int) -> None:
    """Read `streams` streams to their end."""

    async def one(number: int) -> None:
        body = json.dumps({"prompt": [5 + number], "max_tokens": tokens, "ignore_eos": True, "stream": True, "seed": number}).encode()
        # A whole stream is longer than the usual limit of a line.
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await reader.readuntil(b"data: [DONE]\n\n")
        writer.close()

    await asyncio.gather(*(one(number) for number in range(streams)))


def cpu_seconds(server: int) -> dict[str, float]:
    """CPU time of the server process, and of its engine process where it has one."""
    children = [child for task in Path(f"/proc/{server}/task").iterdir() for child in (task / "children").read_text().split()]
    seconds: dict[str, float] = {}
    for name, pid in (("server", str(server)), *(("engine", child) for child in children)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds[name] = (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


if __name__ == "__main__":
    main()
