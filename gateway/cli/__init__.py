"""The command line: `farebox`."""

import gc


def main() -> None:
    # Nothing that is imported becomes garbage: the collector's walks through all of it are a tenth of a start.
    gc.disable()
    from gateway.cli.main import app

    gc.enable()
    app()


__all__ = ["main"]
