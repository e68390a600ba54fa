"""The command line: `farebox`."""

import gc
import sys


def main() -> None:
    # Nothing that is imported becomes garbage: the collector's walks through all of it are a tenth of a start.
    gc.disable()
    import_structlog()
    from gateway.cli.main import app

    gc.enable()
    app()


def import_structlog() -> None:
    """structlog imports rich, and with it pygments and attrs, wherever they are installed: 50 ms and 5 MB for tracebacks in
    colours, which nothing here prints. A module that is None cannot be imported, and structlog goes on without it."""
    if "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        import structlog  # noqa: F401

        del sys.modules["rich"]


__all__ = ["main"]
