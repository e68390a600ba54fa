"""The command line: `farebox`."""

from gateway.cli.main import main

__all__ = ["main"]
