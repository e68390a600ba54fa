"""The command line: `farebox`."""

import gc
import sys


def main() -> None:
    # Imports produce no garbage, and the collector's scans of all that is imported take a tenth of the start-up time.
    gc.disable()
    import_structlog()
    from gateway.cli.main import app

    gc.enable()
    app()


def import_structlog() -> None:
    """Import structlog without its optional dependencies. If installed, it imports rich with pygments and attrs, 50 ms and 5 MB for
    coloured tracebacks that nothing here prints, and greenlet, 2 MB for programs that use greenlets. A module that is None in
    `sys.modules` cannot be imported, and structlog does without it."""
    unwanted = [name for name in ("rich", "greenlet") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unwanted))  # type: ignore[arg-type]
    import structlog  # noqa: F401

    for name in unwanted:
        del sys.modules[name]


__all__ = ["main"]
