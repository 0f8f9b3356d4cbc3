"""Models, probes, version, metrics, request ids, and the schema document."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.live import Live
from tests.server.test_bad_input import assert_error
from xlaserve import __version__


def test_models(shared: Live) -> None:
    listing = shared.client.get("/v1/models").json()
    assert listing["object"] == "list"
    (card,) = listing["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("scripted/model", "model", 128)
    assert shared.client.get("/v1/models/scripted/model").json() == card
    assert shared.client.get("/v1/models/scripted%2Fmodel").json() == card
    assert assert_error(404, shared.client.get("/v1/models/other"))["code"] == "model_not_found"


def test_probes(shared: Live) -> None:
    for path in ("/health", "/ping"):
        response = shared.client.get(path)
        assert (response.status_code, response.content) == (200, b"")
    assert shared.client.get("/ready").json()["status"] == "ready"
    assert shared.client.get("/version").json() == {"version": __version__}


@pytest.mark.parametrize(
    ("given", "echoed"),
    [("abc-123", "abc-123"), ("a b\tc<script>", "abcscript"), ("x" * 500, "x" * 128), ("ü", None), ("", None), (None, None)],
)
def test_request_id(shared: Live, given: str | None, echoed: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given.encode("latin-1")}
    for path in ("/health", "/nothing"):
        answered = shared.client.get(path, headers=headers).headers["x-request-id"]
        assert answered == echoed or (echoed is None and re.fullmatch("[0-9a-f]{32}", answered))


def test_metrics(server: Live) -> None:
    for n in (1, 3):
        assert server.client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4, "n": n}).status_code == 200
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    samples = {(sample.name, *sorted(sample.labels.items())): sample.value for family in families.values() for sample in family.samples}
    labels = (("engine", "0"), ("model_name", "scripted/model"))
    for prefix in ("xlaserve:", "vllm:"):
        assert samples[prefix + "num_requests_waiting", *labels] == 2
        assert samples[prefix + "kv_cache_usage_perc", *labels] == 0.5
        assert samples[prefix + "request_success_total", labels[0], ("finished_reason", "length"), labels[1]] == 4
        assert samples[prefix + "time_to_first_token_seconds_count", *labels] == 2
        assert samples[prefix + "inter_token_latency_seconds_count", *labels] == 4 * 3
        assert samples[prefix + "e2e_request_latency_seconds_count", *labels] == 2
        assert samples[prefix + "request_generation_tokens_sum", *labels] == 16
        assert samples[prefix + "request_prompt_tokens_sum", *labels] == 10
        buckets = [sample.value for sample in families[prefix + "request_generation_tokens"].samples if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 2
    assert samples["xlaserve:compile_events_total", *labels] == 0
    assert samples["xlaserve:scheduled_tokens_total", *labels] == 30
    assert samples["xlaserve:padded_tokens_total", *labels] == 12
    assert samples["xlaserve:http_requests_total", ("method", "POST"), ("path", "/v1/completions"), ("status", "200")] == 2
