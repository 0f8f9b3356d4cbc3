"""Metrics of a load, with vLLM's names and definitions (`vllm bench serve`), and what they leave out: failures by reason, requests sent
late, outputs of another length than was asked for, prompt tokens that came from a cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from xlaserve.bench.load import LoadRun
from xlaserve.bench.record import RequestRecord
from xlaserve.bench.spread import Spread, finite, percentile_name
from xlaserve.bench.table import listing

TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
"""The latencies that are reported, by the names that flags take."""

_BUSY = 0.8
"""Share of a core from which on the client may be what is measured."""
_MS = 1e3


def latencies(records: Sequence[RequestRecord]) -> dict[str, Spread]:
    """Spread in milliseconds of each latency, over requests that succeeded; of `itl` over all gaps of all requests, of `tpot` over
    requests with two tokens or more.
    """
    return {
        "ttft": Spread.of((record.ttft for record in records), _MS),
        "tpot": Spread.of((record.tpot for record in records if record.output_count > 1), _MS),
        "itl": Spread.of((gap for record in records for gap in record.itls), _MS),
        "e2el": Spread.of((record.latency for record in records), _MS),
    }


def is_good(record: RequestRecord, goodput: Mapping[str, float]) -> bool:
    """Whether a request succeeded within every limit (goodput as in DistServe, Zhong et al., 2024).

    Args:
        record: the request.
        goodput: milliseconds by "ttft", "tpot" or "e2el".
    """
    if record.error is not None:
        return False
    found = {"ttft": record.ttft, "tpot": record.tpot, "e2el": record.latency}
    return all(found[name] * _MS <= limit for name, limit in goodput.items())


def serve_metrics(run: LoadRun, *, goodput: Mapping[str, float], percentiles: Sequence[float], ignore_eos: bool) -> dict[str, Any]:
    """All figures of one load, by vLLM's names where it has them. Throughput counts what succeeded over the time that everything took.

    Args:
        run: the load.
        goodput: limits in milliseconds; empty for none, and then no goodput is told.
        percentiles: which to tell beside mean and median.
        ignore_eos: whether outputs had to be as long as was asked.
    """
    good = [record for record in run.records if record.error is None]
    failures = Counter(record.error for record in run.records if record.error is not None)
    inputs, outputs = sum(record.input_count for record in good), sum(record.output_count for record in good)
    seconds = run.duration
    cached = [record.cached_tokens for record in good if record.cached_tokens is not None]
    late = Spread.of((record.sent - record.planned for record in run.records if record.sent), _MS)
    planned = run.records[-1].planned - run.records[0].planned if run.records else 0.0
    found: dict[str, Any] = {
        "duration": seconds,
        "completed": len(good),
        "failed": sum(failures.values()),
        "failures": dict(failures.most_common()),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _rate(len(good), seconds),
        "output_throughput": _rate(outputs, seconds),
        "total_token_throughput": _rate(inputs + outputs, seconds),
        "max_concurrent_requests": run.peak,
        "realized_request_rate": finite((len(run.records) - 1) / planned) if planned > 0 else None,
        "sent_late_ms": late.as_json(percentiles),
        "short_outputs": sum(record.output_count != record.output_len for record in good) if ignore_eos else None,
        "cached_input_tokens": sum(cached) if cached else None,
        "tokens_per_chunk": _rate(outputs, sum(len(record.chunks) for record in good)),
        "tokens_counted_by": {"server": sum(record.output_tokens is not None for record in good), "chunks": _by_chunks(good)},
    }
    if goodput:
        within = sum(is_good(record, goodput) for record in run.records)
        found |= {"request_goodput": _rate(within, seconds), "good_requests": within}
    for name, spread in latencies(good).items():
        values = {"mean": spread.mean, "median": spread.median, "std": spread.std, "min": spread.low, "max": spread.high}
        values |= {percentile_name(percent): spread.percentile(percent) for percent in percentiles}
        found |= {f"{value}_{name}_ms": finite(number) for value, number in values.items()}
    return found


def describe_metrics(found: Mapping[str, Any], names: Sequence[str], percentiles: Sequence[float], rate: float, most: int | None) -> str:
    """The figures for a person, in the order and words of `vllm bench serve`.

    Args:
        found: from `serve_metrics`.
        names: latencies to show.
        percentiles: which there are.
        rate: requests a second that were asked for.
        most: requests at once that were allowed; None for any number.
    """
    rows: list[tuple[str, str] | None] = [
        ("Successful requests", str(found["completed"])),
        ("Failed requests", str(found["failed"])),
        *((f"  {count} x", reason) for reason, count in found["failures"].items()),
        ("Request rate configured (RPS)", f"{rate:.2f}"),
    ]
    if found["realized_request_rate"] is not None:
        rows.append(("Request rate realized (RPS)", _text(found["realized_request_rate"])))
    if most is not None:
        rows.append(("Maximum request concurrency", str(most)))
    rows += [
        ("Peak concurrent requests", str(found["max_concurrent_requests"])),
        ("Benchmark duration (s)", _text(found["duration"])),
        ("Total input tokens", str(found["total_input_tokens"])),
        ("  of these from a cache", _text(found["cached_input_tokens"], 0)),
        ("Total generated tokens", str(found["total_output_tokens"])),
        ("Request throughput (req/s)", _text(found["request_throughput"])),
    ]
    if "request_goodput" in found:
        rows.append(("Request goodput (req/s)", f"{_text(found['request_goodput'])} ({found['good_requests']} requests)"))
    rows += [
        ("Output token throughput (tok/s)", _text(found["output_throughput"])),
        ("Total token throughput (tok/s)", _text(found["total_token_throughput"])),
    ]
    for name in names:
        rows += [None, (TITLES[name], "")]
        for value in ("mean", "median", *map(percentile_name, percentiles)):
            rows.append((f"  {value.capitalize()} {name.upper()} (ms)", _text(found[f"{value}_{name}_ms"])))
    return listing(rows)


def doubts(found: Mapping[str, Any], client_share: float) -> list[str]:
    """Reasons not to take figures for what they seem.

    Args:
        found: from `serve_metrics`.
        client_share: share of a core that the client took.
    """
    told: list[str] = []
    if client_share > _BUSY:
        told.append(f"the client took {client_share:.0%} of a core: the server may be faster than this.")
    if found["short_outputs"]:
        told.append(f"{found['short_outputs']} outputs are not as long as was asked for: does the server take ignore_eos?")
    if found["tokens_counted_by"]["chunks"]:
        told.append("the server does not tell tokens, so pieces of the stream were counted, which may hold several.")
    return told


def _by_chunks(records: Sequence[RequestRecord]) -> int:
    return sum(record.output_tokens is None for record in records)


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _text(value: float | None, digits: int = 2) -> str:
    return "not told" if value is None else f"{value:,.{digits}f}"
