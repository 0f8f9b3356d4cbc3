"""What dashboards, routers and autoscalers read: vLLM's names and labels, what counts, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.test_failures import send

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "xlaserve.json"
LABELS = {"model_name": "scripted/model", "engine": "0"}

# Names that vLLM's own dashboard, llm-d's scheduler and production-stack's router read.
VLLM = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "engine_sleep_state",
    "cache_config_info",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prompt_tokens_cached_total",
    "num_preemptions_total",
    "request_success_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket",
    "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_bucket",
    "request_inference_time_seconds_bucket",
    "request_time_per_output_token_seconds_bucket",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_max_num_generation_tokens_bucket",
    "request_params_n_bucket",
    "request_params_max_tokens_bucket",
    "iteration_tokens_total_bucket",
]


def samples(live: Live) -> dict[str, list[Any]]:
    """The samples of /metrics by name."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(live.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def finished(live: Live) -> dict[str, float]:
    """Completions by finish reason; both names say the same."""
    ours, theirs = (
        {sample.labels["finished_reason"]: sample.value for sample in samples(live)[f"{prefix}:request_success_total"]}
        for prefix in ("xlaserve", "vllm")
    )
    assert ours == theirs
    return ours


@pytest.fixture(scope="module")
def scraped() -> Generator[dict[str, list[Any]]]:
    with live_server(ScriptedEngine()) as live:
        for body in ({"prompt": "hello", "max_tokens": 4}, {"prompt": ["a", "b"], "n": 2, "max_tokens": 4, "stream": True}):
            assert live.client.post("/v1/completions", json=body).status_code == 200
        yield samples(live)


@pytest.mark.parametrize("name", VLLM)
def test_names_that_others_read(scraped: dict[str, list[Any]], name: str) -> None:
    for prefix in ("vllm:", "xlaserve:"):
        for sample in scraped[prefix + name]:
            assert sample.labels.items() >= LABELS.items()


def test_what_is_observed(scraped: dict[str, list[Any]]) -> None:
    def value(name: str) -> float:
        (sample,) = scraped["vllm:" + name]
        return sample.value

    for name in ("request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds", "request_params_n"):
        assert value(f"{name}_count") == 3, name
    assert value("request_params_n_sum") == 1 + 2 + 2
    assert value("request_params_max_tokens_sum") == 3 * 4
    assert value("request_max_num_generation_tokens_sum") == 3 * 4
    assert value("request_generation_tokens_sum") == 4 + 8 + 8
    assert value("request_time_per_output_token_seconds_count") == 3
    assert (value("iteration_tokens_total_count"), value("iteration_tokens_total_sum")) == (3, 30)
    assert [sample.value for sample in scraped["vllm:iteration_tokens_total_bucket"]] == [2] + [3] * 13
    bounds = [float(sample.labels["le"]) for sample in scraped["vllm:time_to_first_token_seconds_bucket"]]
    assert (bounds[0], bounds[-2], len(bounds)) == (0.001, 2560, 23)
    (info,) = scraped["vllm:cache_config_info"]
    assert (info.value, info.labels["block_size"], info.labels["num_gpu_blocks"]) == (1, "16", "10")


def test_reasons_are_those_that_clients_see(server: Live, engine: ScriptedEngine) -> None:
    assert finished(server) == {"stop": 0, "length": 0, "abort": 0, "error": 0}
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 3, "n": 2}
    server.client.post("/v1/completions", json=body)
    assert finished(server) == {"stop": 0, "length": 2, "abort": 0, "error": 0}
    engine.end_with, engine.fail_after = "stop", 4
    server.client.post("/v1/completions", json={**body, "stream": True})
    assert finished(server) == {"stop": 2, "length": 2, "abort": 0, "error": 0}
    engine.end_with, engine.fail_after = "error", 2
    assert server.client.post("/v1/completions", json=body).status_code == 500
    engine.end_with, engine.failure = None, RuntimeError("a bug")
    assert server.client.post("/v1/completions", json={**body, "prompt": ["a", "b"]}).status_code == 500
    assert finished(server) == {"stop": 2, "length": 2, "abort": 0, "error": 6}
    # What was refused has not begun.
    assert server.client.post("/v1/completions", json={**body, "n": 0}).status_code == 400
    assert sum(finished(server).values()) == 10


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_are_aborts(server: Live, engine: ScriptedEngine, stream: bool) -> None:
    engine.pause_after = 5
    connection = send(server, "/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 100, "stream": stream})
    assert engine.paused.wait(TIMEOUT)
    connection.close()
    assert engine.aborted.wait(TIMEOUT)
    assert finished(server) == {"stop": 0, "length": 0, "abort": 4, "error": 0}


def expressions(panel: Any) -> Generator[tuple[str, str]]:
    for target in panel.get("targets", ()):
        yield panel["title"], target["expr"]
    for inner in panel.get("panels", ()):
        yield from expressions(inner)


def test_the_dashboard_asks_for_what_there_is(scraped: dict[str, list[Any]]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [pair for panel in dashboard["panels"] for pair in expressions(panel)]
    asked += [(variable["name"], variable["query"]["query"]) for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert len(asked) > 30
    used: set[str] = set()
    for title, expression in asked:
        names = re.findall(r"\b(?:xlaserve|vllm):\w+", expression)
        assert names, title
        assert expression.count("(") == expression.count(")"), title
        for name in names:
            assert name in scraped, f"{title}: {name} is not in the exposition"
            used.add(name)
        for name, wanted in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
            known = {label for sample in scraped[name] for label in sample.labels} | {"instance"}
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", wanted)) <= known, f"{title}: {name}"
    assert len(used) > 25
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
