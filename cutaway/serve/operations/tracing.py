"""OpenTelemetry: one span a request, and below it its phases, sent to a collector. Needs cutaway[serve].

The phases are prepare (reading, checking, rendering), queue, prefill and decode. A ``traceparent`` header
(W3C) makes the span part of its sender's trace; attributes are named by OpenTelemetry's GenAI conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.errors import UserError
from cutaway.extras import install
from cutaway.serve.operations.request_record import RequestRecord

NANOSECONDS = 1e9


class Tracing:
    """Sends spans to an OTLP endpoint, such as http://collector:4318/v1/traces, or to ``exporter``."""

    def __init__(self, endpoint: str, exporter: Any = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise UserError(
                f"--otlp-endpoint needs {error.name}, which is not installed: {install('serve')}"
            ) from None
        self.provider = TracerProvider(resource=Resource.create({"service.name": "cutaway"}))
        self.provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint)))
        self._tracer = self.provider.get_tracer("cutaway")

    def report(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """Send the span of a request that ended."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        def at(seconds: float) -> int:
            return int((record.arrived + seconds) * NANOSECONDS)

        shown = {
            "http.request.method": record.method,
            "http.route": record.path,
            "http.response.status_code": record.status,
            "gen_ai.request.model": record.model,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.generated_tokens,
            "cutaway.request_id": record.id,
            "cutaway.key": record.tenant.name if record.tenant is not None else "",
        }
        span = self._tracer.start_span(
            f"{record.method} {record.path}",
            TraceContextTextMapPropagator().extract(dict(headers)),
            SpanKind.SERVER,
            {name: value for name, value in shown.items() if value != ""},
            start_time=at(0.0),
        )
        if record.error is not None or record.status >= 500:
            span.set_status(StatusCode.ERROR, record.error or "")
        if record.submitted_seconds is not None and record.first_token_seconds is not None:
            started = record.submitted_seconds + record.queue_seconds
            marks = [0.0, record.submitted_seconds, started, record.first_token_seconds, record.seconds]
            for name, begin, end in zip(
                ("prepare", "queue", "prefill", "decode"), marks, marks[1:], strict=False
            ):
                phase = self._tracer.start_span(name, set_span_in_context(span), start_time=at(begin))
                phase.end(at(end))
        span.end(at(record.seconds))
