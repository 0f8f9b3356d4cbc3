"""Prometheus metrics: engine statistics read at each scrape, latency histograms kept here, in a registry of our own.

Every metric that vLLM has too is exposed under both `xlaserve:` and `vllm:` names with vLLM's meaning and labels, so that routers,
autoscalers and dashboards work unmodified.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from xlaserve import __version__
from xlaserve.engine.messages import EngineInfo
from xlaserve.engine.outputs import ITERATION_TOKENS, EngineStats
from xlaserve.server.engine import Engine

FINISH_REASONS = ("stop", "length", "abort", "error")

# fmt: off
_TTFT_SECONDS = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_INTER_TOKEN_SECONDS = (.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_SECONDS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_COMPLETIONS = (1, 2, 5, 10, 20)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
# fmt: on


class Histogram:
    """Counts of observations by upper bound; cheap enough to be fed once per token."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Adds `count` observations of `value`."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def family(self, prefix: str, labels: dict[str, str]) -> Metric:
        """The histogram as Prometheus exposes it, cumulative buckets included."""
        family = HistogramMetricFamily(prefix + self.name, self.documentation, labels=list(labels))
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        cumulative = (float(count) for count in accumulate(self._counts))
        family.add_metric(list(labels.values()), list(zip(bounds, cumulative, strict=True)), self._sum)
        return family


class Metrics(Collector):
    """Everything that `/metrics` shows. Fed and scraped on the event loop thread only."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram("time_to_first_token_seconds", "From arrival to the first token.", _TTFT_SECONDS)
        self.inter_token_latency = Histogram(
            "inter_token_latency_seconds", "Between successive tokens of a sequence.", _INTER_TOKEN_SECONDS
        )
        self.e2e_latency = Histogram("e2e_request_latency_seconds", "From arrival to the last token.", _REQUEST_SECONDS)
        self.queue_time = Histogram("request_queue_time_seconds", "From arrival to the first scheduled chunk.", _REQUEST_SECONDS)
        self.prompt_tokens = Histogram("request_prompt_tokens", "Prompt tokens per request.", _TOKENS)
        self.generation_tokens = Histogram("request_generation_tokens", "Generated tokens per request.", _TOKENS)
        self.time_per_output_token = Histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a request.", _INTER_TOKEN_SECONDS
        )
        self.prefill_time = Histogram(
            "request_prefill_time_seconds", "From the first scheduled chunk to the first token.", _REQUEST_SECONDS
        )
        self.decode_time = Histogram("request_decode_time_seconds", "From the first token to the last.", _REQUEST_SECONDS)
        self.inference_time = Histogram(
            "request_inference_time_seconds", "From the first scheduled chunk to the last token.", _REQUEST_SECONDS
        )
        self.max_generation_tokens = Histogram(
            "request_max_num_generation_tokens", "Generated tokens of a request's longest completion.", _TOKENS
        )
        self.params_n = Histogram("request_params_n", "Completions that requests ask for.", _COMPLETIONS)
        self.params_max_tokens = Histogram("request_params_max_tokens", "`max_tokens` of requests that have it.", _TOKENS)
        self.http_requests: Counter[tuple[str, str, int]] = Counter()
        # What clients are told: a stop string may be found in what the engine has ended for its length.
        self.finished: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self._engine: Engine | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def attach(self, engine: Engine) -> None:
        """From now on its statistics are part of every scrape."""
        self._engine = engine

    def exposition(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        info = GaugeMetricFamily("xlaserve:info", "The version that runs.", labels=["version"])
        info.add_metric([__version__], 1.0)
        yield info
        yield self._http_family()
        ready = self._engine is not None and self._engine.healthy
        yield GaugeMetricFamily("xlaserve:ready", "1 when requests are served.", value=float(ready))
        if self._engine is None:
            return
        labels = {"model_name": self._engine.model_name, "engine": "0"}
        stats = self._engine.stats()
        yield from _own_families(stats, labels)
        for prefix in ("xlaserve:", "vllm:"):
            yield from _shared_families(stats, prefix, labels)
            for histogram in (
                self.time_to_first_token,
                self.inter_token_latency,
                self.e2e_latency,
                self.queue_time,
                self.prompt_tokens,
                self.generation_tokens,
                self.time_per_output_token,
                self.prefill_time,
                self.decode_time,
                self.inference_time,
                self.max_generation_tokens,
                self.params_n,
                self.params_max_tokens,
            ):
                yield histogram.family(prefix, labels)
            yield _iteration_tokens(stats, prefix, labels)
            yield self._finished_family(prefix, labels)
            yield _cache_info(self._engine.info, prefix, labels)

    def _finished_family(self, prefix: str, labels: dict[str, str]) -> Metric:
        family = CounterMetricFamily(prefix + "request_success", "Ended completions by finish reason.", labels=[*labels, "finished_reason"])
        for reason, count in sorted(self.finished.items()):
            family.add_metric([*labels.values(), reason], float(count))
        return family

    def _http_family(self) -> Metric:
        family = CounterMetricFamily("xlaserve:http_requests", "HTTP requests answered.", labels=["method", "path", "status"])
        for (method, path, status), count in self.http_requests.items():
            family.add_metric([method, path, str(status)], float(count))
        return family


def _shared_families(stats: EngineStats, prefix: str, labels: dict[str, str]) -> Iterator[Metric]:
    names, values = list(labels), list(labels.values())
    for name, documentation, value in (
        ("num_requests_running", "Requests being computed.", stats.num_running),
        ("num_requests_waiting", "Requests in the queue.", stats.num_waiting),
        ("kv_cache_usage_perc", "Fraction of KV blocks in use, 0 to 1.", stats.kv_usage),
    ):
        gauge = GaugeMetricFamily(prefix + name, documentation, labels=names)
        gauge.add_metric(values, float(value))
        yield gauge
    asleep = GaugeMetricFamily(prefix + "engine_sleep_state", "1 for the state that it is in.", labels=[*names, "sleep_state"])
    # vLLM's names; at level 1 it moves the weights to the host, while here they stay where they are.
    for level, state in enumerate(("awake", "weights_offloaded", "discard_all")):
        asleep.add_metric([*values, state], float(stats.sleep_level == level))
    yield asleep
    for name, documentation, value in (
        ("prompt_tokens", "Prompt tokens computed or reused.", stats.prompt_tokens),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens),
        ("num_preemptions", "Times a running request gave its blocks back.", stats.preemptions),
        ("prefix_cache_queries", "Tokens of requests that looked for computed KV blocks.", stats.prefix_cache_queries),
        ("prefix_cache_hits", "Of these, tokens in blocks that were found.", stats.prefix_cache_hits),
        ("prompt_tokens_cached", "Prompt tokens that were not computed.", stats.prefix_cache_hits),
    ):
        yield _counter(prefix + name, documentation, value, labels)


def _iteration_tokens(stats: EngineStats, prefix: str, labels: dict[str, str]) -> Metric:
    family = HistogramMetricFamily(prefix + "iteration_tokens_total", "Tokens computed in an iteration.", labels=list(labels))
    bounds = [*(str(float(bound)) for bound in ITERATION_TOKENS), "+Inf"]
    cumulative = (float(count) for count in accumulate(stats.iteration_tokens))
    family.add_metric(list(labels.values()), list(zip(bounds, cumulative, strict=True)), float(stats.scheduled_tokens))
    return family


def _cache_info(info: EngineInfo, prefix: str, labels: dict[str, str]) -> Metric:
    """vLLM's labels, and its word for a device's blocks; routers read the block size here."""
    facts = {
        "block_size": info.block_size,
        "num_gpu_blocks": info.num_blocks,
        "kv_cache_size_tokens": info.block_size * info.num_blocks,
        "kv_cache_max_concurrency": round(info.block_size * info.num_blocks / info.max_model_len, 2),
    }
    family = GaugeMetricFamily(prefix + "cache_config_info", "The KV cache; always 1.", labels=[*labels, *facts])
    family.add_metric([*labels.values(), *map(str, facts.values())], 1.0)
    return family


def _own_families(stats: EngineStats, labels: dict[str, str]) -> Iterator[Metric]:
    paused = GaugeMetricFamily("xlaserve:paused", "1 while nothing is computed, asleep or not.", labels=list(labels))
    paused.add_metric(list(labels.values()), float(stats.paused))
    yield paused
    for name, documentation, value in (
        ("compile_events", "XLA compilations after readiness; a healthy engine stays at 0.", stats.compile_events),
        ("steps", "Engine iterations.", stats.steps),
        ("stalls", "Times the engine had work and got nowhere for too long.", stats.stalls),
        ("scheduled_tokens", "Tokens that graphs computed for requests.", stats.scheduled_tokens),
        ("padded_tokens", "Token places in the same graphs that were padding.", stats.padded_tokens),
        ("allocated_token_slots", "Token places in allocated KV blocks, summed over steps.", stats.allocated_token_slots),
        ("used_token_slots", "Of these, places that hold a token.", stats.used_token_slots),
        ("grammars", "Structured outputs whose grammar was compiled, or found compiled.", stats.grammars),
        ("grammar_seconds", "Seconds that compiling took.", stats.grammar_seconds),
        ("masks", "Masks of allowed tokens that were filled.", stats.masks),
        ("mask_seconds", "Seconds that filling them took.", stats.mask_seconds),
        ("forced_tokens", "Tokens that a grammar left no choice of, and that were not sampled.", stats.forced_tokens),
    ):
        yield _counter("xlaserve:" + name, documentation, value, labels)


def _counter(name: str, documentation: str, value: float, labels: dict[str, str]) -> Metric:
    counter = CounterMetricFamily(name, documentation, labels=list(labels))
    counter.add_metric(list(labels.values()), float(value))
    return counter
