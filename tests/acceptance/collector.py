"""A span collector that accepts OTLP over HTTP, like any other, and keeps what it receives."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class ReceivedSpan:
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    status: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    spans: list[ReceivedSpan] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        self.raw.append(body)
        self.headers.append(headers)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(_attributes(group.resource.attributes))
            self.spans += [_seen(span) for scope in group.scope_spans for span in scope.spans]

    def wait(self, matches: Callable[[ReceivedSpan], bool]) -> ReceivedSpan:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for span in list(self.spans):
                if matches(span):
                    return span
            time.sleep(0.05)
        raise AssertionError(f"no such span among {[(span.name, span.attributes) for span in self.spans]}")

    def call_of(self, workflow: str) -> tuple[ReceivedSpan, list[ReceivedSpan]]:
        """The span of the only call of a workflow, and those of its attempts."""
        whole = self.wait(lambda span: span.name == f"invoke_workflow {workflow}")
        return whole, [span for span in self.spans if span.parent == whole.id]


def _attributes(pairs: Any) -> dict[str, Any]:
    attributes = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        attributes[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return attributes


def _seen(span: Span) -> ReceivedSpan:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return ReceivedSpan(span.name, span.kind, *ids, span.status.code, _attributes(span.attributes))


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            collector.take(self.path, headers, self.rfile.read(int(headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    yield collector
    server.shutdown()
    server.server_close()
