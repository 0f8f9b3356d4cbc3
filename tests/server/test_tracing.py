"""Spans: one of each generation, in the caller's trace, with vLLM's attributes and without the prompt; sent to a collector."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.test_cli import ROOT, TIMEOUT, serving
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState
from xlaserve.server.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "the-secret-prompt"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(engine: ScriptedEngine, spans: InMemorySpanExporter) -> Generator[Live]:
    state = ServerState(ServerSettings(port=0))
    state.observers.append(Tracing(SimpleSpanProcessor(spans)).observer)
    with live_server(engine, state=state) as live:
        yield live


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_of_each_generation(traced: Live, spans: InMemorySpanExporter, stream: bool) -> None:
    body = {"prompt": [SECRET, SECRET], "n": 2, "max_tokens": 3, "temperature": 0.5, "stream": stream}
    response = traced.client.post("/v1/completions", json=body, headers={"traceparent": PARENT, "X-Request-Id": "mine"})
    assert response.status_code == 200
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == ("llm_request", SpanKind.SERVER, StatusCode.UNSET)
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" in PARENT
    attributes = dict(span.attributes or {})
    assert SECRET not in str(attributes)
    first, computed, whole = (
        float(attributes.pop(f"gen_ai.latency.{name}")) for name in ("time_to_first_token", "time_in_model_inference", "e2e")
    )
    # The first is counted from arrival on, the second from when the prompt was scheduled.
    assert 0 < first <= whole < TIMEOUT
    assert 0 < computed <= whole
    for name in ("time_in_queue", "time_in_model_prefill", "time_in_model_decode"):
        assert isinstance(attributes.pop(f"gen_ai.latency.{name}"), float)
    request_id = str(attributes.pop("gen_ai.request.id"))
    assert request_id in response.text
    assert attributes == {
        "gen_ai.request.model": "scripted/model",
        "gen_ai.response.model": "scripted/model",
        "gen_ai.request.n": 2,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.prompt_tokens": 2 * len(SECRET),
        "gen_ai.usage.num_sequences": 4,
        "gen_ai.usage.completion_tokens": 12,
        "gen_ai.usage.cached_tokens": 0,
        "gen_ai.response.finish_reasons": ("length",) * 4,
        "http.request.header.x-request-id": "mine",
    }


def test_failures_are_errors_and_refusals_are_no_spans(traced: Live, engine: ScriptedEngine, spans: InMemorySpanExporter) -> None:
    assert traced.client.post("/v1/completions", json={"prompt": ""}).status_code == 400
    engine.failure, engine.fail_after = RuntimeError("a bug"), 2
    assert traced.client.post("/v1/completions", json={"prompt": "a"}).status_code == 500
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.parent is None
    assert (span.attributes or {})["gen_ai.response.finish_reasons"] == ("error",)


class _Collector(BaseHTTPRequestHandler):
    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_spans_reach_a_collector() -> None:
    with HTTPServer(("127.0.0.1", 0), _Collector) as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
            with serving("--otlp-traces-endpoint", endpoint, "tiny") as served:
                served.read_until("-d ")
                assert httpx.post(f"{served.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
                code, errors = served.stop()
                assert code == 0, errors
        finally:
            collector.shutdown()
            thread.join()
    (sent,) = map(ExportTraceServiceRequest.FromString, _Collector.received)
    (resource,) = sent.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "xlaserve"
    assert resource.scope_spans[0].spans[0].name == "llm_request"


def test_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace.export'] = None\n"
        "from xlaserve.cli import main\n"
        "sys.exit(main(['serve', '--port=0', '--otlp-traces-endpoint=http://localhost:4318/v1/traces']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 2
    assert "pip install 'xlaserve[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
