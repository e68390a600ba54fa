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
    colours, which nothing here prints; and greenlet, 2 MB for programs whose threads are greenlets. A module that is None cannot be
    imported, and structlog goes on without it."""
    unwanted = [name for name in ("rich", "greenlet") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unwanted))  # type: ignore[arg-type]
    import structlog  # noqa: F401

    for name in unwanted:
        del sys.modules[name]


__all__ = ["main"]
