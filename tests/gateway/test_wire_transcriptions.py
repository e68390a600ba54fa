"""Transcriptions: strict and bounded parsing of the form, the duration of the audio, and the usage of answers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.wire.audio_duration import duration_ms, duration_ms_at_most
from gateway.wire.form import parts_of
from gateway.wire.transcriptions import FILE_BYTES_MAX, TranscriptionsProtocol
from policies.pricing import Usage
from tests.gateway.wav_files import wav

TRANSCRIPTIONS = TranscriptionsProtocol()
BOUNDARY = b"----b0undary"


def field(name: str, value: bytes | str, parameters: str = "", headers: str = "") -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return f'Content-Disposition: form-data; name="{name}"{parameters}\r\n{headers}\r\n'.encode() + content


def sound_part(content: bytes, name: str = "a.wav") -> bytes:
    return field("file", content, f'; filename="{name}"', "Content-Type: audio/wav\r\n")


def form(*parts: bytes) -> bytes:
    return b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + b"--\r\n"


def mp3(frames: int, *, head: bytes = b"", tail: bytes = b"") -> bytes:
    """128 kbit/s at 44,100 Hz: frames of 417 bytes and 26.122 ms."""
    return head + (b"\xff\xfb\x90\x00" + b"\x00" * 413) * frames + tail


MODEL = field("model", "whisper-1")


def test_form_is_parsed_and_forwarded_unchanged() -> None:
    sound = wav(2.5) + b"\r\n--not the boundary\r\n"
    raw = form(
        sound_part(sound, "née.wav"),
        MODEL,
        field("language", "nl"),
        field("timestamp_granularities[]", "word"),
        field("timestamp_granularities[]", "segment"),
        field("temperature", "0.2"),
        field("stream", "false"),
    )
    request = TRANSCRIPTIONS.parse(raw)
    assert (request.model, request.has_output, request.stream) == ("whisper-1", False, False)
    assert request.audio_ms == 2500
    body = TRANSCRIPTIONS.upstream_body(request, None, stream=False)
    assert body.pop("file") == ("née.wav", sound, "audio/wav")
    assert body == {
        "model": "whisper-1",
        "language": "nl",
        "timestamp_granularities": ["word", "segment"],
        "temperature": "0.2",
    }
    assert request.units() == Usage(audio_ms=request.audio_ms)


def test_file_name_with_an_invalid_encoding_is_replaced() -> None:
    name = "filename*=raw_unicode_escape''%5Cud800.wav"
    head = f'Content-Disposition: form-data; name="file"; {name}\r\n\r\n'.encode()
    assert parts_of(form(head + b"x"))[0].file_name == "?.wav"


@given(st.binary(max_size=300))
def test_any_file_content_is_preserved(content: bytes) -> None:
    [part] = parts_of(form(sound_part(content)))
    assert (part.name, part.content, part.file_name, part.content_type) == ("file", content, "a.wav", "audio/wav")


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    for body in (raw, b"--b\r\n" + raw, b"--b\r\n" + raw + b"\r\n--b--\r\n"):
        with suppress(BadRequest):
            assert all(part.name for part in parts_of(body))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"--",
        b"--\r\n",
        b"--b",
        b"--b\r\n",
        b"--b--\r\n",
        b"--b\r\n" + MODEL,
        b"--b\r\n" + MODEL + b"\r\n--b\r\n",
        b"preamble\r\n" + form(MODEL),
        b"--" + b"b" * 80 + b"\r\n",
        form(b"Content-Type: text/plain\r\n\r\nno name"),
        form(b"Content-Disposition: form-data\r\n\r\nx"),
        form(b'Content-Disposition: form-data; name=""\r\n\r\nx'),
        form(b'Content-Disposition: attachment; name="file"\r\n\r\nx'),
        form(b"no head at all"),
        form(field("file", "YQ==", "", "Content-Transfer-Encoding: base64\r\n")),
        form(field("x" * 9000, "v")),
        form(*[field(f"f{number}", "v") for number in range(65)]),
    ],
    ids=range(19),
)
def test_invalid_form_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        TRANSCRIPTIONS.parse(raw)
    assert (refused.value.status, refused.value.code) == (400, "invalid_form")


@pytest.mark.parametrize(
    ("parts", "param", "code", "status"),
    [
        ([sound_part(b"x")], "model", "missing_field", 400),
        ([sound_part(b"x"), field("model", "")], "model", "invalid_value", 400),
        ([MODEL], "file", "missing_field", 400),
        ([MODEL, sound_part(b"")], "file", "invalid_value", 400),
        ([MODEL, sound_part(b"x" * (FILE_BYTES_MAX + 1))], None, "request_too_large", 413),
        ([MODEL, MODEL, sound_part(b"x")], "model", "duplicate_key", 400),
        ([MODEL, sound_part(b"x"), sound_part(b"y")], "file", "duplicate_key", 400),
        ([MODEL, sound_part(b"x"), field("api_base", "http://x")], "api_base", "forbidden_field", 400),
        ([MODEL, sound_part(b"x"), field("api_key[]", "k")], "api_key", "forbidden_field", 400),
        ([MODEL, sound_part(b"x"), field("prompt", b"\xff")], "prompt", "invalid_value", 400),
        ([MODEL, sound_part(b"x"), field("prompt", "p" * 70_000)], "prompt", "invalid_value", 400),
        ([MODEL, sound_part(b"x"), field("stream", "true")], "stream", "invalid_value", 400),
        ([MODEL, sound_part(b"x"), field("stream[]", "true")], "stream", "invalid_value", 400),
        (
            [MODEL, sound_part(b"x"), field("language", "de"), field("language[]", "en")],
            "language",
            "duplicate_key",
            400,
        ),
        (
            [MODEL, sound_part(b"x"), field("language[]", "de"), field("language", "en")],
            "language",
            "duplicate_key",
            400,
        ),
    ],
)
def test_invalid_field_is_named(parts: list[bytes], param: str | None, code: str, status: int) -> None:
    with pytest.raises(BadRequest) as refused:
        TRANSCRIPTIONS.parse(form(*parts))
    assert (refused.value.param, refused.value.code, refused.value.status) == (param, code, status)


@pytest.mark.parametrize(
    ("sound", "milliseconds"),
    [
        (wav(1.0), 1000),
        (wav(0.25, 44_100, 2), 250),
        (wav(0), 0),
        (mp3(100), 2613),
        (mp3(100, head=b"ID3\x04\x00\x00\x00\x00\x01\x00" + b"\x00" * 128), 2613),
        (mp3(100, tail=b"TAG" + b"\x00" * 125), 2613),
        (b"\xff\xf3\x84\xc4" * 3, None),
        (mp3(1) + b"x" * 9000, None),
        (mp3(4000), 104_488),
        (mp3(2500, tail=mp3(1)[:200]), 65_318),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"RIFF\x00\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd", None),
        (b"RIFF\x00\x00\x00\x00WAVE" + b"junk\x00\x00\x00\x00" * 2_000 + wav(1.0)[12:], None),
        (b"OggS...", None),
        (b"fLaC...", None),
        (b"", None),
    ],
    ids=range(16),
)
def test_duration_of_audio_is_measured_or_bounded_by_its_size(sound: bytes, milliseconds: int | None) -> None:
    assert duration_ms(sound) == milliseconds
    assert duration_ms_at_most(sound) == (len(sound) * 1000 // 750 + 1 if milliseconds is None else milliseconds)


def test_duration_of_a_wav_ignores_a_false_header() -> None:
    honest = wav(2.0)
    wrong_byte_rate = honest[:28] + (2**31).to_bytes(4, "little") + honest[32:]
    assert duration_ms(wrong_byte_rate) == 2000
    short = honest[:40] + (16).to_bytes(4, "little") + honest[44:60]
    assert duration_ms(short + honest[36:]) == 2001, "players continue with the next data chunk"
    assert duration_ms(honest[:40] + bytes(4) + honest[44:]) == 2000
    assert duration_ms(honest + wav(0, 48_000)[12:]) == 2000
    packed = honest[:20] + (49).to_bytes(2, "little") + honest[22:]
    assert duration_ms(packed) is None
    assert duration_ms_at_most(packed) > 2000


def test_duration_of_a_streamed_wav_follows_its_bytes() -> None:
    unknown = bytearray(wav(2.0))
    at = unknown.index(b"data") + 4
    unknown[at : at + 4] = b"\xff\xff\xff\xff"
    assert duration_ms(bytes(unknown)) == 2000


@given(st.binary(max_size=200))
def test_any_audio_bytes_have_a_duration_bound(content: bytes) -> None:
    for head in (
        b"",
        b"RIFF\x00\x00\x00\x00WAVE",
        b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00",
        b"ID3\x04\x00\x00",
        b"\xff\xfb",
    ):
        assert duration_ms_at_most(head + content) >= 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"text": "hi", "usage": {"type": "duration", "seconds": 9}}, Usage(audio_ms=9000)),
        ({"text": "hi", "duration": 8.4701}, Usage(audio_ms=8471)),
        (
            {
                "text": "hi",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                    "output_tokens": 45,
                    "total_tokens": 59,
                },
                "duration": 3,
            },
            Usage(14, 45, audio_input_tokens=10),
        ),
        ({"text": "hi"}, None),
        ({"text": "hi", "usage": {"seconds": -1}}, None),
        ({"text": "hi", "usage": {"seconds": True}}, None),
        ({"text": "hi", "duration": 1e12}, None),
        ({"text": "hi", "usage": {"input_tokens": -1, "output_tokens": 4}}, None),
    ],
)
def test_usage_is_read_from_the_answer(answer: dict[str, Any], expected: Usage | None) -> None:
    request = TRANSCRIPTIONS.parse(form(MODEL, sound_part(wav(1))))
    assert TRANSCRIPTIONS.usage(answer) == expected
    assert TRANSCRIPTIONS.usage_of_bytes(request, json.dumps(answer).encode()) == expected


@pytest.mark.parametrize("answer", [b"WEBVTT\n\n00:00.000 --> 00:01.000\nhi\n", b"hi\n", b"", b"7"])
def test_subtitles_and_plain_text_have_no_usage(answer: bytes) -> None:
    request = TRANSCRIPTIONS.parse(form(MODEL, sound_part(wav(1)), field("response_format", "vtt")))
    assert TRANSCRIPTIONS.is_binary
    assert TRANSCRIPTIONS.usage_of_bytes(request, answer) is None
