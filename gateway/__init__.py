"""The gateway waits here: it asks `policies`, then performs."""
