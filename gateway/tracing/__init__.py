"""OpenTelemetry spans for calls. Without `tracing.endpoint`, nothing is imported and nothing runs."""
