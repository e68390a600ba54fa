"""Spans of calls for OpenTelemetry. Nothing of it is imported, and nothing runs, unless `tracing.endpoint` is set."""
