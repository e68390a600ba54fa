"""What operators see: metrics, logs and alerts. Spans are in `gateway.tracing`."""
