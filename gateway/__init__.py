"""The gateway performs the I/O: it asks `policies` for decisions and carries them out."""

__version__ = "0.1.0"
