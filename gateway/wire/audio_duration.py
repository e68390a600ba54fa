"""The duration of an audio file, read from its bytes, because audio models are priced by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from policies.tokens.media import wav_bytes_per_second

# Opus goes down to 6 kbit/s, and no common encoder goes lower for speech, which bounds the duration of a file.
_BYTES_PER_SECOND_MIN: Final = 750
# MPEG audio layer III: kbit/s by four bits of the frame header, for version 1, and for versions 2 and 2.5.
_KBITS_1: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBITS_2: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_HERTZ: Final[Mapping[int, tuple[int, int, int, int]]] = {
    3: (44_100, 48_000, 32_000, 0),
    2: (22_050, 24_000, 16_000, 0),
    0: (11_025, 12_000, 8_000, 0),
}
_FRAMES_READ_MAX: Final = 2_000  # 26 ms each: bounds the work to a few milliseconds for files of any size
_CHUNKS_READ_MAX: Final = 1_000  # a WAV file has two, plus a few with its title
_TAIL_BYTES_MAX: Final = 4_096


def duration_ms(sound: bytes) -> int | None:
    """The duration of a WAV or MP3 file in milliseconds, rounded up; None for other or damaged files."""
    if sound[:4] == b"RIFF" and sound[8:12] == b"WAVE":
        return _wav_ms(sound)
    if sound[:3] == b"ID3" or sound[:2] in (
        b"\xff\xfb",
        b"\xff\xfa",
        b"\xff\xf3",
        b"\xff\xf2",
        b"\xff\xe3",
        b"\xff\xe2",
    ):
        return _mp3_ms(sound)
    return None


def duration_ms_at_most(sound: bytes) -> int:
    """The duration or, for formats that are not parsed here (Opus, AAC, FLAC, Vorbis), an upper bound based on the size.

    The bound does not hold for silence, which compresses to almost nothing: its seconds are booked if the answer reports them.
    """
    exact_ms = duration_ms(sound)
    return len(sound) * 1000 // _BYTES_PER_SECOND_MIN + 1 if exact_ms is None else exact_ms


def _wav_ms(sound: bytes) -> int | None:
    """From the `fmt ` and all `data` chunks. A streamed file has 0 or 0xFFFFFFFF as a size that was not known in advance."""
    offset, audio_bytes = 12, -1
    rates: list[int] = []
    for _ in range(_CHUNKS_READ_MAX):
        if offset + 8 > len(sound):
            rate = min(rates, default=0)
            return -(-audio_bytes * 1000 // rate) if rate and audio_bytes >= 0 else None
        name, size = sound[offset : offset + 4], int.from_bytes(sound[offset + 4 : offset + 8], "little")
        offset += 8
        if name == b"fmt ":
            rates.append(wav_bytes_per_second(sound[offset : offset + 16]))
        if name == b"data":
            size = min(size or len(sound), len(sound) - offset)
            audio_bytes = max(audio_bytes, 0) + size
        offset += size + size % 2
    return None


def _mp3_ms(sound: bytes) -> int | None:
    """The sum of the frames, correct for constant and variable bit rates; extrapolated beyond the first 52 s."""
    start = offset = _offset_after_id3(sound)
    micros = 0
    for _ in range(_FRAMES_READ_MAX):
        frame = _mp3_frame(sound, offset)
        if frame is None or offset + frame[0] > len(sound):
            break
        offset += frame[0]
        micros += frame[1]
    else:
        return -(-micros * (len(sound) - start) // ((offset - start) * 1000))
    # The rest may be a tag, padding or a truncated frame. If there is more, these were not really frames.
    return -(-micros // 1000) if micros and len(sound) - offset <= _TAIL_BYTES_MAX else None


def _offset_after_id3(sound: bytes) -> int:
    if sound[:3] != b"ID3" or len(sound) < 10:
        return 0
    size = 0
    for byte in sound[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _mp3_frame(sound: bytes, offset: int) -> tuple[int, int] | None:
    """The size in bytes and the duration in microseconds of the frame at this offset."""
    if offset + 4 > len(sound) or sound[offset] != 0xFF or sound[offset + 1] & 0xE6 != 0xE2:
        return None
    version = sound[offset + 1] >> 3 & 3
    hertz = _HERTZ.get(version, (0, 0, 0, 0))[sound[offset + 2] >> 2 & 3]
    kbits = (_KBITS_1 if version == 3 else _KBITS_2)[sound[offset + 2] >> 4]
    if not hertz or not kbits:
        return None
    samples = 1_152 if version == 3 else 576
    return samples // 8 * kbits * 1000 // hertz + (sound[offset + 2] >> 1 & 1), samples * 1_000_000 // hertz
