"""The browser of these tests: Debian's Chromium, driven by playwright, whose driver is a Node.js program of its own."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Final

import pytest

CHROMIUM: Final = Path("/usr/bin/chromium")


def _lacking() -> str | None:
    """What the browser tests need and do not find, and how to install it. None if they can run."""
    if not CHROMIUM.exists():
        return f"there is no Chromium at {CHROMIUM}: apt-get install chromium"
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed"
    from playwright._impl._driver import compute_driver_executable

    driver = subprocess.run([*compute_driver_executable(), "--version"], capture_output=True, text=True, timeout=60)
    if driver.returncode:  # a minimal Debian lacks libatomic1
        return f"playwright's driver does not start: {driver.stderr.strip()}"
    return None


_LACKING: Final = _lacking()
needs_chromium: Final = pytest.mark.skipif(_LACKING is not None, reason=_LACKING or "")
