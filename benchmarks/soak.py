"""A storm of requests against `xlaserve serve`, and whether it leaves anything behind: exit status 0 where all checks hold, else 1.

    python benchmarks/soak.py MODEL [--requests 2000] [--at-once 64] [--seed 0]

Lengths, sampling, priorities and manners are random: clients read whole answers or streams, read slowly, cut streams in the middle, hang
up before the answer, or ask for nonsense. The model should be tiny: its KV cache is made so small here that sequences are preempted. A
fixed probe, greedy and seeded, must give the same before, all along and after. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LENGTH = 256
FLAGS = (
    *(f"--max-model-len={LENGTH}", "--max-num-seqs=8", "--max-num-batched-tokens=64", "--num-blocks=33"),
    *("--scheduling-policy=priority", "--log-level=warning"),
)
WAVES = 9
"""Memory is read when the engine is idle, after each wave. In the first third, caches, rings and allocators fill up."""

GROWTH_KIB = 512
"""How much a process may grow, resident, in the middle one of the waves after those.

Seen were 0 to 80 KiB, what allocators wander, and 1,050 in the engine when it was made to forget no sequence, some 220 a wave.
"""

TOLERANCE = 5e-5
"""Of the probes' log probabilities, which other batch sizes sum in another order."""

PROBE: dict[str, Any] = {"prompt": list(range(40, 90)), "max_tokens": 40, "ignore_eos": True, "logprobs": 5}
PROBES = ({**PROBE, "temperature": 0}, {**PROBE, "temperature": 0.9, "top_p": 0.95, "seed": 7, "presence_penalty": 0.5})
MANNERS = {"whole": 30, "stream": 25, "slow": 6, "cut": 17, "impatient": 8, "gone": 8, "nonsense": 6}
"""What clients do, and how often: read the answer, read a stream, read a stream slowly, cut it in the middle, hang up while the answer is
computed, hang up at once, ask for what is refused."""

LEAVING = ("cut", "impatient", "gone")


@dataclass(frozen=True)
class Metrics:
    """The samples of /metrics: name without its prefix, labels, value."""

    samples: list[tuple[str, dict[str, str], float]]

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The samples of one name and these labels, by another label."""
        found = [(own, value) for sample, own, value in self.samples if sample == name and labels.items() <= own.items()]
        return {own.get(label, ""): value for own, value in found}

    def total(self, name: str) -> float:
        """The one sample of a name that is told apart by nothing but the engine; 0 where there is none."""
        return sum(self.by(name, "engine").values())


@dataclass
class Soak:
    """What happened, and what was found wrong."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    sequences: Counter[str] = field(default_factory=Counter)  # of requests that stayed to the end, and of those that left
    probes: int = 0
    difference: float = 0.0
    seconds: float = 0.0
    memory: dict[str, list[int]] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=lambda: Metrics([]))
    checks: dict[str, bool] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """The checks that do not hold."""
        return [name for name, holds in self.checks.items() if not holds]

    def table(self) -> str:
        """The whole for a person."""
        lines = [f"{sum(self.sent.values())} requests in {self.seconds:.1f} s", f"{'clients':<12}{'sent':>8}{'read to the end':>18}"]
        lines += [f"{manner:<12}{self.sent[manner]:>8}{self.answered[manner]:>18}" for manner in MANNERS]
        for name in ("num_preemptions_total", "generation_tokens_total", "prefix_cache_hits_total", "steps_total"):
            lines.append(f"{name.removesuffix('_total'):<24}{self.metrics.total(name):>14.0f}")
        lines.append(f"{self.probes} probes, log probabilities differ by {self.difference:.1e} at most")
        for name, values in self.memory.items():
            lines.append(f"resident memory of the {name}, MiB: " + ", ".join(f"{value / 1024:.1f}" for value in values))
        return "\n".join([*lines, *(f"{'ok' if holds else 'FAILED':<8}{name}" for name, holds in self.checks.items())])


@dataclass(frozen=True)
class Answer:
    """What a client read: status, and the JSON events, or the one JSON object, of the body; less where it left early."""

    status: int
    events: list[dict[str, Any]]
    complete: bool

    @classmethod
    def of(cls, data: bytes) -> Answer:
        """Reads a whole HTTP/1.1 response of a connection that has been closed."""
        head, _, body = data.partition(b"\r\n\r\n")
        status = int(head.split(None, 2)[1]) if head else 0
        if b"text/event-stream" not in head:
            return cls(status, [json.loads(body)] if body else [], bool(body))
        # Each HTTP chunk holds whole events, so an event's line is in one piece.
        lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
        complete = bool(lines) and lines[-1] == b"[DONE]"
        return cls(status, [json.loads(line) for line in lines[:-1]], complete)


async def request(port: int, body: dict[str, Any], *, manner: str = "whole", mind: float = 0) -> Answer:
    """One request on a connection of its own.

    Args:
        port: of the server on this machine.
        body: to be posted.
        manner: of the client, as in `MANNERS`.
        mind: 0 to 1, when it leaves: after that part of 8 KiB of a stream, or of a fifth of a second.
    """
    connection = socket.socket()
    if manner == "slow":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024 if manner == "slow" else 1 << 16)
    content = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
    data = b""
    try:
        await writer.drain()
        if manner == "gone":
            return Answer(0, [], complete=False)
        if manner == "impatient":
            await asyncio.sleep(mind / 5)
            return Answer(0, [], complete=False)
        while piece := await reader.read(2048 if manner == "slow" else 1 << 16):
            data += piece
            if manner == "cut" and len(data) > mind * 8192:
                return Answer(0, [], complete=False)
            if manner == "slow":
                await asyncio.sleep(0.02)
        return Answer.of(data)
    finally:
        writer.close()


def wish(rng: random.Random, manner: str) -> dict[str, Any]:
    """The body of a random request. Half of the prompts begin alike."""
    begin = list(range(100, 200))[: rng.choice((0, 0, 40, 100))]
    prompt = begin + [rng.randrange(4, 500) for _ in range(rng.choice((1, 5, 20, 60, 100)))]
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": min(rng.choice((1, 4, 16, 16, 40, 90)), LENGTH - len(prompt)),
        "temperature": rng.choice((0, 0.7, 1.2)),
        "top_p": rng.choice((1.0, 0.9)),
        "seed": rng.choice((None, rng.getrandbits(32))),
        "n": rng.choice((1, 1, 1, 2, 3)),
        "priority": rng.randint(-3, 3),
        "ignore_eos": rng.random() < 0.7,
        "stop": rng.choice((None, None, ["e"], ["th", "qu"])),
        "logprobs": rng.choice((None, None, None, 0, 3)),
        "stream": manner in ("stream", "slow", "cut"),
    }
    if rng.random() < 0.3:
        body |= {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"9": 2.0}, "bad_words": ["a"]}
    if rng.random() < 0.05 and not body["stream"]:
        body["prompt_logprobs"] = 2
    if manner == "slow":
        body |= {"logprobs": 5, "max_tokens": min(90, LENGTH - len(prompt)), "stop": None}
    if manner == "nonsense":
        body |= rng.choice(({"prompt": [5] * 300}, {"temperature": -1}, {"n": 0}, {"model": "another"}, {"prompt": []}, {"stop": 7}))
    return body


async def visit(soak: Soak, port: int, rng: random.Random) -> None:
    """One random client."""
    (manner,) = rng.choices(list(MANNERS), list(MANNERS.values()))
    body = wish(rng, manner)
    soak.sent[manner] += 1
    answer = await request(port, body, manner=manner, mind=rng.random())
    if manner == "nonsense":
        soak.answered[manner] += 400 <= answer.status < 500
    elif answer.complete and answer.status == 200:
        reasons = [choice["finish_reason"] for event in answer.events for choice in event.get("choices", ()) if choice["finish_reason"]]
        soak.answered[manner] += len(reasons) == body["n"]
        soak.sequences["stayed"] += body["n"]
    elif manner in LEAVING:
        soak.sequences["left"] += body["n"]


async def probe(port: int) -> list[dict[str, Any]]:
    """What the two probes give."""
    answers = [await request(port, {**body, "priority": -1}) for body in PROBES]
    return [answer.events[0]["choices"][0] for answer in answers]


def compare(soak: Soak, found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether probes gave what they gave at first."""
    same = True
    for one, other in zip(found, expected, strict=True):
        a, b = one["logprobs"], other["logprobs"]
        same &= (one["text"], one["finish_reason"], a["tokens"]) == (other["text"], other["finish_reason"], b["tokens"])
        soak.difference = max([soak.difference, *(abs(x - y) for x, y in zip(a["token_logprobs"], b["token_logprobs"], strict=True))])
        soak.probes += 1
    return same


async def scrape(port: int) -> Metrics:
    """What /metrics says now."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
    text = (await reader.read(-1)).decode()
    writer.close()
    samples = re.findall(r"^xlaserve:(\w+)(?:\{(.*)\})? (\S+)\r?$", text, re.MULTILINE)
    return Metrics([(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in samples])


async def idle(port: int) -> Metrics:
    """The metrics once nothing runs or waits and every block is free; those of the last look after half a minute."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    deadline = time.monotonic() + 30
    while True:
        found = await scrape(port)
        if not any(found.total(name) for name in names) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)


async def storm(soak: Soak, port: int, pids: dict[str, int], requests: int, at_once: int, seed: int) -> None:
    """All requests, in waves, with probes in between."""
    rng = random.Random(seed)
    expected = await probe(port)
    equal = True
    gate = asyncio.Semaphore(at_once)
    soak.memory = {name: [resident(pid)] for name, pid in pids.items()}

    async def gated(number: int, seed: int) -> None:
        nonlocal equal
        async with gate:
            if number % 100 == 50:
                equal &= compare(soak, await probe(port), expected)
            await visit(soak, port, random.Random(seed))

    for wave in range(WAVES):
        numbers = range(requests * wave // WAVES, requests * (wave + 1) // WAVES)
        await asyncio.gather(*(gated(number, rng.getrandbits(64)) for number in numbers))
        soak.metrics = await idle(port)
        for name, pid in pids.items():
            soak.memory[name].append(resident(pid))
    equal &= compare(soak, await probe(port), expected)
    soak.checks["probes give the same before, all along and after"] = equal and soak.difference < TOLERANCE
    soak.metrics = await idle(port)


def judge(soak: Soak, probes: int) -> None:
    """Draw the conclusions from what was counted on both sides."""

    value = soak.metrics.total
    posts = soak.metrics.by("http_requests_total", "status", method="POST", path="/v1/completions")
    finished = soak.metrics.by("request_success_total", "finished_reason")
    staying = [manner for manner in MANNERS if manner not in LEAVING]
    ended = sum(finished.values())
    stayed, left = soak.sequences["stayed"] + probes, soak.sequences["left"]
    checks = {
        "everybody who waited has got a complete answer": all(soak.answered[manner] == soak.sent[manner] for manner in staying),
        "every request was answered or given up by its client": sum(posts.values()) == soak.sent.total() + probes,
        "what was refused is nonsense, and nothing has failed": posts.keys() <= {"200", "400", "404", "499"}
        and posts.get("400", 0) + posts.get("404", 0) == soak.sent["nonsense"],
        "every sequence has ended, none with an error": stayed <= ended <= stayed + left and not finished.get("error"),
        "those that were aborted, and there are some, are of clients that left": 0 < finished.get("abort", 0) <= left,
        "nothing runs or waits": value("num_requests_running") == value("num_requests_waiting") == 0,
        "every KV block is free": value("kv_cache_usage_perc") == 0,
        "sequences were preempted": value("num_preemptions_total") > 0,
        "prefixes were reused": value("prefix_cache_hits_total") > 0,
        "nothing was compiled": value("compile_events_total") == 0,
        "the engine never stalled": value("stalls_total") == 0,
    }
    for name, values in soak.memory.items():
        checks[f"the {name}'s memory is flat"] = growth(values) < GROWTH_KIB
    soak.checks |= checks


@contextmanager
def serving(model: str, log: Path, command: Sequence[str], flags: Sequence[str] = FLAGS) -> Generator[tuple[int, dict[str, int]]]:
    """A server and its engine until the block ends: the port, and the two process ids."""
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*command, "serve", "--port=0", *flags, model], stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            port = 0
            for line in process.stdout:
                if found := re.search(r"listening on http://[^:]+:(\d+)", line):
                    port = int(found[1])
                if "    -d " in line:
                    break
            else:
                raise SystemExit(f"the server has not started:\n{log.read_text()}")
            tasks = Path(f"/proc/{process.pid}/task").iterdir()
            (engine,) = [int(child) for task in tasks for child in (task / "children").read_text().split()]
            yield port, {"server": process.pid, "engine": engine}
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def resident(pid: int) -> int:
    """Resident memory of a process, in KiB."""
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib)


def growth(values: Sequence[int]) -> float:
    """What comes to a process with a wave, in KiB: the median over the waves but for the first third of them.

    What is left behind is left behind by every wave. Whatever comes once does not count: as soon as more objects live at once than ever
    before, which is a matter of how requests happen to meet, Python takes some MiB and keeps them.

    Args:
        values: resident memory in KiB, before the first wave and after each.
    """
    steps = [after - before for before, after in itertools.pairwise(values)]
    return statistics.median(steps[len(steps) // 3 :])


def run(model: str, *, requests: int, at_once: int, seed: int, command: Sequence[str] = (sys.executable, "-m", "xlaserve")) -> Soak:
    """Soak a server.

    Args:
        model: as `xlaserve serve` takes it; token ids 4 to 499 must be in its vocabulary.
        requests: how many, probes aside.
        at_once: of these.
        seed: of everything random on the clients' side.
        command: runs xlaserve.
    """
    soak = Soak()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with serving(model, log, command) as (port, pids):
            began = time.monotonic()
            asyncio.run(storm(soak, port, pids, requests, at_once, seed))
            soak.seconds = time.monotonic() - began
        judge(soak, soak.probes + len(PROBES))
        lines = [line for line in log.read_text().splitlines() if "stopping" not in line]
        soak.checks["the log is empty" + "".join(f"\n        {line}" for line in lines[:20])] = not lines
    return soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    soak = run(args.model, requests=args.requests, at_once=args.at_once, seed=args.seed)
    print(soak.table())
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
