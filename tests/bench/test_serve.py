"""The client of `bench serve` against a server: loads are kept to, and whatever fails is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine, ScriptedStream
from xlaserve.bench.load import run_load
from xlaserve.bench.record import RequestRecord
from xlaserve.bench.serve import CHAT, ServeOptions, bench_serve, request_body
from xlaserve.bench.serve_metrics import serve_metrics
from xlaserve.bench.workload import WorkItem
from xlaserve.errors import ConfigError, InvalidRequestError, XlaserveError


class CountingEngine(ScriptedEngine):
    """Counts how many requests are under way at once."""

    peak = 0

    def submit(self, prompt: Any, params: Any, *, request_id: str | None = None) -> ScriptedStream:
        stream = super().submit(prompt, params, request_id=request_id)
        self.peak = max(self.peak, len(self.running))
        return stream


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def server(engine: CountingEngine) -> Iterator[Live]:
    with live_server(engine) as live:
        yield live


def items(count: int, output_len: int = 5) -> list[WorkItem]:
    return [WorkItem([65 + number % 26] * 8, 8, output_len) for number in range(count)]


def load(server: Live, work: Sequence[WorkItem], arrivals: Sequence[float] = (), warmups: Sequence[WorkItem] = (), **options: Any) -> Any:
    asked = ServeOptions(url=server.url, **options)
    return asyncio.run(bench_serve(asked, work, warmups, arrivals or [0.0] * len(work)))


def figures(served: Any, **goodput: float) -> dict[str, Any]:
    return serve_metrics(served.run, goodput=goodput, percentiles=[99], ignore_eos=True)


def test_every_request_is_answered_and_counted_by_the_server(server: Live, engine: CountingEngine) -> None:
    served = load(server, items(20), ignore_eos=True, temperature=0.0)
    found = figures(served, ttft=1e6, tpot=1e6)
    assert (found["completed"], found["failed"], found["short_outputs"], found["good_requests"]) == (20, 0, 0, 20)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (160, 100)
    assert found["tokens_counted_by"] == {"server": 20, "chunks": 0}
    assert {stream.params.temperature for stream in engine.submitted} == {0.0}
    assert {stream.params.ignore_eos for stream in engine.submitted} == {True}
    assert served.model == "scripted/model"
    assert served.server["platform"] == "scripted"
    assert served.client["cpu_seconds"] > 0


def test_no_more_at_once_than_allowed(server: Live, engine: CountingEngine) -> None:
    engine.token_seconds = 0.001
    served = load(server, items(30), max_concurrency=3)
    assert (engine.peak, served.run.peak) == (3, 3)
    assert served.client["connections"] <= 3
    # Those that waited their turn say so.
    assert figures(served)["sent_late_ms"]["max"] > 0


def test_all_at_once_where_nothing_limits_it(server: Live, engine: CountingEngine) -> None:
    engine.pause_after = 1
    work = items(8)

    async def main() -> Any:
        task = asyncio.create_task(bench_serve(ServeOptions(url=server.url), work, [], [0.0] * 8))
        while len(engine.running) < 8:
            await asyncio.sleep(0)
        engine.let_go()
        return await task

    assert asyncio.run(main()).run.peak == 8


def test_nothing_is_sent_before_it_is_due(server: Live) -> None:
    arrivals = [0.0, 0.05, 0.06, 0.15]
    run = load(server, items(4), arrivals).run
    assert [record.planned - run.began for record in run.records] == pytest.approx(arrivals)
    assert all(record.sent >= record.planned for record in run.records)


def test_refusals_are_counted_and_told(server: Live, engine: CountingEngine) -> None:
    engine.refusal, engine.refuse_after = InvalidRequestError("no more of these."), 4
    found = figures(load(server, items(10), max_concurrency=1), ttft=1e6)
    assert (found["completed"], found["failed"], found["good_requests"]) == (4, 6, 4)
    assert list(found["failures"].values()) == [6]
    assert "no more of these." in next(iter(found["failures"]))


def test_answers_that_break_off_are_failures(server: Live, engine: CountingEngine) -> None:
    engine.failure, engine.fail_after = XlaserveError("it broke"), 2
    found = figures(load(server, items(3)))
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (0, 3, 0)
    assert "stream" in next(iter(found["failures"]))


def test_a_request_that_takes_too_long_is_a_failure(server: Live, engine: CountingEngine) -> None:
    engine.pause_after = 1
    found = figures(load(server, items(2), timeout=0.2))
    assert found["failures"] == {"no answer within 0.2 s": 2}


def test_goodput_leaves_out_what_is_slow(server: Live, engine: CountingEngine) -> None:
    engine.token_seconds = 0.02
    served = load(server, items(4), max_concurrency=2)
    assert figures(served, tpot=5)["good_requests"] == 0
    assert figures(served, tpot=5000, ttft=5000, e2el=20000)["good_requests"] == 4


def test_short_outputs_are_told(server: Live) -> None:
    found = figures(load(server, items(3, output_len=9), extra_body={"max_tokens": 3}))
    assert (found["short_outputs"], found["total_output_tokens"]) == (3, 9)


def test_chats(server: Live, engine: CountingEngine) -> None:
    served = load(server, [WorkItem("hello there", 11, 4)], endpoint=CHAT, extra_body={"seed": 5})
    (record,) = served.run.records
    assert record.error is None
    assert record.output_count == 4
    assert engine.submitted[0].params.seed == 5
    assert bytes(engine.submitted[0].prompt_token_ids).endswith(b"hello there<assistant>")
    with pytest.raises(ConfigError, match="take text"):
        request_body(ServeOptions(url=server.url, endpoint=CHAT), "m", WorkItem([1], 1, 1))


def test_warmups_count_for_nothing_and_must_succeed(server: Live, engine: CountingEngine) -> None:
    served = load(server, items(2), warmups=items(3))
    assert len(engine.submitted) == 5
    assert len(served.run.records) == 2
    engine.refusal = InvalidRequestError("not today.")
    with pytest.raises(XlaserveError, match="not today"):
        load(server, items(2), warmups=items(1))


def test_a_key_is_sent() -> None:
    engine = ScriptedEngine()
    with live_server(engine, api_keys=("sesame",)) as live:
        assert figures(load(live, items(1), api_key="sesame"))["completed"] == 1
        with pytest.raises(ConfigError, match="HTTP 401"):
            load(live, items(1))


def test_nobody_there() -> None:
    with pytest.raises(ConfigError, match="cannot reach"):
        asyncio.run(bench_serve(ServeOptions(url="http://127.0.0.1:9"), items(1), [], [0.0]))


def test_a_load_keeps_the_order_of_its_requests() -> None:
    order: list[int] = []

    async def send(item: WorkItem, record: RequestRecord) -> None:
        order.append(item.prompt_len)
        await asyncio.sleep(0)
        record.sent = record.ended = 1.0

    work = [WorkItem([1], number, 1) for number in range(20)]
    run = asyncio.run(run_load(send, work, [0.0] * 20, 2))
    assert order == list(range(20))
    assert [record.prompt_len for record in run.records] == order
    assert run.peak == 2
