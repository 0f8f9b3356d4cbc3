"""Metrics of loads that can be checked by hand, and what is read off a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xlaserve.bench.load import LoadRun
from xlaserve.bench.record import AnswerReader, RequestRecord
from xlaserve.bench.serve_metrics import describe_metrics, doubts, is_good, serve_metrics


def request(sent: float, chunks: list[float], ended: float, tokens: int | None = None, **more: Any) -> RequestRecord:
    return RequestRecord(10, 3, planned=sent, sent=sent, chunks=chunks, ended=ended, output_tokens=tokens, **more)


FIRST = request(100.0, [100.2, 100.3, 100.5], 100.6, 5, prompt_tokens=12, cached_tokens=4)
SECOND = request(101.0, [101.4], 101.4, 1, prompt_tokens=8, cached_tokens=0)
FAILED = request(101.5, [], 104.0, error="HTTP 503: full")
RUN = LoadRun([FIRST, SECOND, FAILED], 100.0, 104.0, 2)


def metrics(goodput: dict[str, float] | None = None, *, ignore_eos: bool = False) -> dict[str, Any]:
    return serve_metrics(RUN, goodput=goodput or {}, percentiles=[50, 99], ignore_eos=ignore_eos)


def test_latencies_of_one_request() -> None:
    assert pytest.approx(0.2) == FIRST.ttft
    assert pytest.approx(0.6) == FIRST.latency
    assert pytest.approx(0.1) == FIRST.tpot  # 0.4 s for 4 tokens after the first
    assert pytest.approx([0.1, 0.2]) == FIRST.itls
    assert SECOND.tpot == 0


def test_by_hand() -> None:
    found = metrics()
    assert (found["completed"], found["failed"], found["failures"]) == (2, 1, {"HTTP 503: full": 1})
    assert (found["total_input_tokens"], found["total_output_tokens"], found["cached_input_tokens"]) == (20, 6, 4)
    # The time that the failed request took counts, and it adds nothing.
    assert found["duration"] == pytest.approx(4)
    assert found["request_throughput"] == pytest.approx(0.5)
    assert found["output_throughput"] == pytest.approx(1.5)
    assert found["total_token_throughput"] == pytest.approx(6.5)
    assert found["mean_ttft_ms"] == pytest.approx(300)
    assert found["p99_ttft_ms"] == pytest.approx(200 + 0.99 * 200)
    assert found["median_tpot_ms"] == pytest.approx(100)  # of the one request that has a second token
    assert found["mean_itl_ms"] == pytest.approx(150)
    assert found["mean_e2el_ms"] == pytest.approx(500)
    assert found["p50_e2el_ms"] == found["median_e2el_ms"]
    assert found["tokens_per_chunk"] == pytest.approx(1.5)
    assert "request_goodput" not in found
    assert found["realized_request_rate"] == pytest.approx(2 / 1.5)


def test_goodput_counts_what_keeps_every_limit() -> None:
    assert metrics({"ttft": 250})["good_requests"] == 1
    assert metrics({"ttft": 401})["request_goodput"] == pytest.approx(0.5)
    assert metrics({"ttft": 1000, "tpot": 99})["good_requests"] == 1  # the second has no token after its first
    assert metrics({"e2el": 601, "tpot": 101, "ttft": 201})["good_requests"] == 1
    assert not is_good(FAILED, {"e2el": 1e9})


def test_outputs_of_another_length_are_told_where_all_should_have_one() -> None:
    assert metrics()["short_outputs"] is None
    assert metrics(ignore_eos=True)["short_outputs"] == 2


def test_doubts_are_told() -> None:
    assert doubts(metrics(), 0.1) == []
    assert len(doubts(metrics(ignore_eos=True), 0.9)) == 2


def test_chunks_count_where_the_server_does_not() -> None:
    untold = request(0.0, [0.1, 0.2], 0.3)
    found = serve_metrics(LoadRun([untold], 0.0, 0.5, 1), goodput={}, percentiles=[99], ignore_eos=False)
    assert found["tokens_counted_by"] == {"server": 0, "chunks": 1}
    assert (found["total_input_tokens"], found["total_output_tokens"], found["cached_input_tokens"]) == (10, 2, None)
    assert "pieces" in doubts(found, 0.0)[0]


def test_nothing_but_failures_has_no_latencies() -> None:
    found = serve_metrics(LoadRun([FAILED], 100.0, 104.0, 1), goodput={"ttft": 1}, percentiles=[99], ignore_eos=True)
    assert (found["completed"], found["failed"], found["request_goodput"], found["mean_ttft_ms"]) == (0, 1, 0.0, None)
    assert "not told" in describe_metrics(found, ["ttft"], [99], 1.0, None)
    json.dumps(found, allow_nan=False)


def test_the_report_has_vllms_words() -> None:
    text = describe_metrics(metrics({"ttft": 250}), ["ttft", "e2el"], [99], 4.0, 2)
    for line in (
        "Successful requests",
        "Failed requests",
        "1 x",
        "HTTP 503: full",
        "Request goodput (req/s)",
        "Mean TTFT (ms)",
        "P99 E2EL (ms)",
    ):
        assert line in text
    assert "TPOT" not in text


def read(*pieces: bytes, status: int = 200) -> RequestRecord:
    record = RequestRecord(5, 5, sent=1.0)
    reader = AnswerReader(record)
    reader.begin(status)
    for at, piece in enumerate(pieces):
        reader.feed(piece, 2.0 + at)
    reader.end(50.0)
    return record


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str, reason: str | None = None) -> bytes:
    return event(choices=[{"text": piece, "finish_reason": reason}])


def delta(reason: str | None = None, **content: Any) -> bytes:
    return event(choices=[{"delta": content, "finish_reason": reason}])


USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}})
DONE = b"data: [DONE]\n\n"


def test_a_stream_is_read() -> None:
    record = read(text("a"), text("b"), text("", "length"), USAGE, DONE)
    assert (record.error, record.chunks, record.finish_reason) == (None, [2.0, 3.0], "length")
    assert (record.input_count, record.output_count, record.cached_tokens, record.ended) == (7, 3, 2, 50.0)


def test_pieces_may_be_cut_anywhere() -> None:
    whole = text("a") + text("b", "stop") + USAGE + DONE
    for cut in range(len(whole)):
        record = read(whole[:cut], whole[cut:])
        assert record.error is None
        assert len(record.chunks) == 2
        assert record.output_count == 3


def test_a_chat_begins_with_its_first_text_and_not_with_the_role() -> None:
    record = read(delta(role="assistant", content=""), delta(reasoning_content="hm"), delta(content="a"), delta("stop"), DONE)
    assert record.chunks == [3.0, 4.0]
    assert read(delta(tool_calls=[{"index": 0}]), DONE).error is None


@pytest.mark.parametrize(
    ("pieces", "status", "message"),
    [
        ([b'{"error": {"message": "too long"}}'], 400, "HTTP 400: too long"),
        ([b"Bad", b" gateway"], 502, "HTTP 502: Bad gateway"),
        ([], 503, "HTTP 503: "),
        ([text("a"), event(error={"message": "died"}), DONE], 200, "error in the stream: died"),
        ([text("a")], 200, "the stream ended early"),
        ([text("", "stop"), USAGE, DONE], 200, "the answer has no output"),
        ([b"data: {nonsense\n\n"], 200, "not as OpenAI's"),
        ([b"data: [1]\n\n"], 200, "not as OpenAI's"),
        ([b"<html>"], 200, "no output"),
    ],
)
def test_whatever_is_wrong_is_an_error(pieces: list[bytes], status: int, message: str) -> None:
    record = read(*pieces, status=status)
    assert record.error is not None
    assert message in record.error
