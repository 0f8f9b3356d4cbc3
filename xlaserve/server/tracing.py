"""OpenTelemetry: a span of each generation, with the attributes that vLLM gives its own, sent to a collector from a thread.

A request that brings a `traceparent` header (https://www.w3.org/TR/trace-context/) has its span in that trace. Prompts and answers are
in no span. Needs the extra `otel`; OpenTelemetry's own variables, such as OTEL_SERVICE_NAME, are honoured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from xlaserve import __version__
from xlaserve.errors import ConfigError
from xlaserve.server.observers import Begun, Ended, Observer

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

SPAN_NAME = "llm_request"


class Tracing:
    """Makes observers that make spans.

    Args:
        processor: what becomes of ended spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource({"service.name": "xlaserve", "service.version": __version__}).merge(OTELResourceDetector().detect())
        # What is left when the process ends is sent then.
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("xlaserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def observer(self, request_id: str, headers: Headers) -> Observer:
        """A `MakeObserver`."""
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        return _SpanObserver(self._tracer, self._propagator.extract(carrier), request_id)


def open_tracing(endpoint: str) -> Tracing:
    """Tracing to a collector that speaks OTLP over HTTP.

    Raises:
        ConfigError: the endpoint is no URL, or the extra is not installed.
    """
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        raise ConfigError(f"--otlp-traces-endpoint must be a URL such as http://localhost:4318/v1/traces, got {endpoint!r}.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"--otlp-traces-endpoint needs the extra otel: pip install 'xlaserve[otel]' ({error}).") from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


class _SpanObserver:
    def __init__(self, tracer: Tracer, context: Context, request_id: str) -> None:
        self._tracer = tracer
        self._context = context
        self._request_id = request_id
        self._spans: dict[str, Span] = {}

    def began(self, begun: Begun) -> None:
        """As in `Observer`."""
        from opentelemetry.trace import SpanKind

        self._spans[begun.generation_id] = self._tracer.start_span(
            SPAN_NAME, self._context, SpanKind.SERVER, _request_attributes(begun, self._request_id), start_time=time.time_ns()
        )

    def ended(self, begun: Begun, ended: Ended) -> None:
        """As in `Observer`."""
        from opentelemetry.trace import StatusCode

        span = self._spans.pop(begun.generation_id)
        span.set_attributes(_end_attributes(ended))
        if "error" in ended.finish_reasons:
            span.set_status(StatusCode.ERROR)
        span.end()


def _request_attributes(begun: Begun, request_id: str) -> dict[str, Any]:
    params = begun.params
    given = {
        "gen_ai.request.id": begun.generation_id,
        "gen_ai.request.model": begun.model,
        "gen_ai.response.model": begun.model,
        "gen_ai.request.n": params.n,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": getattr(params, "temperature", None),
        "gen_ai.request.top_p": getattr(params, "top_p", None),
        "gen_ai.usage.prompt_tokens": begun.prompt_tokens,
        "gen_ai.usage.num_sequences": len(begun.prompts) * params.n,
        "http.request.header.x-request-id": request_id,
    }
    return {name: value for name, value in given.items() if value is not None}


def _end_attributes(ended: Ended) -> dict[str, Any]:
    inference = None if ended.prefill is None or ended.decode is None else ended.prefill + ended.decode
    known = {
        "gen_ai.usage.completion_tokens": ended.completion_tokens,
        "gen_ai.usage.cached_tokens": ended.cached_tokens,
        "gen_ai.response.finish_reasons": ended.finish_reasons,
        "gen_ai.latency.time_in_queue": ended.queue,
        "gen_ai.latency.time_to_first_token": ended.first_token,
        "gen_ai.latency.time_in_model_prefill": ended.prefill,
        "gen_ai.latency.time_in_model_decode": ended.decode,
        "gen_ai.latency.time_in_model_inference": inference,
        "gen_ai.latency.e2e": ended.seconds,
    }
    return {name: value for name, value in known.items() if value is not None}
