"""The gateway waits here: it asks `policies`, then performs."""

__version__ = "0.1.0"
