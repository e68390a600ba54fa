"""Silent WAV files for the tests of audio."""

from __future__ import annotations

import io
import wave


def wav(seconds: float, rate: int = 8_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((channels, 2, rate, 0, "NONE", ""))
        sound.writeframes(b"\x00\x00" * channels * int(rate * seconds))
    return buffer.getvalue()
