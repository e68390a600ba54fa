"""OpenAI's speech: turns a text into audio, priced per character, or by the tokens or seconds of the audio."""

from __future__ import annotations

from typing import Any, Final, Literal

from gateway.errors import BadRequest
from gateway.upstream.port import ProtocolName
from gateway.wire.audio_duration import duration_ms
from gateway.wire.body import missing_or, parse_object, text
from gateway.wire.buffered import BufferedProtocol, refuse_stream
from gateway.wire.protocol import Request
from policies.pricing import Usage

INPUT_CHARACTERS_MAX: Final = 1_000_000
# Slow speech: ten letters a second, or three characters of a syllabic or logographic script.
_LETTER_MS: Final = 100
_SYLLABLE_MS: Final = 330
_PAUSES_MS: Final = 1_000
_SPEEDS: Final = (0.25, 4.0)
# `pcm` is 24 kHz, 16 bit, one channel.
_PCM_BYTES_PER_SECOND: Final = 48_000
_TOKENS_PER_SECOND: Final = 21  # of audio: 12 USD per million tokens make the documented 0.015 USD per minute


class SpeechProtocol(BufferedProtocol):
    name: ProtocolName = "speech"
    counted_as: Literal["embeddings"] = "embeddings"  # its `input` is counted in the same way
    answer_field: Final = ""
    is_binary = True

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        spoken = text(body, "input", INPUT_CHARACTERS_MAX)
        _check_voice(body.get("voice"))
        if body.get("stream_format") == "sse":
            raise BadRequest.field("stream_format", "sse is not possible here; leave it out, or say audio")
        refuse_stream(body)
        audio_ms = _spoken_ms(spoken, _speed(body))
        return Request(
            body=body,
            model=model,
            has_output=False,
            metadata=body.get("metadata"),
            characters=len(spoken),
            audio_ms=audio_ms,
            media_tokens=-(-audio_ms * _TOKENS_PER_SECOND // 1000),
        )

    def usage_of_bytes(self, request: Request, answer: bytes) -> Usage | None:
        """The characters of the request, and the actual duration of the audio if its format reveals it."""
        if not answer:
            return None
        if request.body.get("response_format") == "pcm":
            spoken_ms = -(-len(answer) * 1000 // _PCM_BYTES_PER_SECOND)
        else:
            spoken_ms = duration_ms(answer) or request.audio_ms
        return Usage(characters=request.characters, audio_ms=spoken_ms)


def _check_voice(voice: Any) -> None:
    if not isinstance(voice, str | dict) or not voice:
        raise missing_or("voice", voice, "must be a name, or an object with an id")


def _speed(body: dict[str, Any]) -> float:
    speed = body.get("speed")
    if speed is None:
        return 1.0
    slowest, fastest = _SPEEDS
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not slowest <= speed <= fastest:
        raise BadRequest.field("speed", f"must be a number from {slowest} to {fastest}")
    return float(speed)


def _spoken_ms(spoken: str, speed: float) -> int:
    """The longest the audio can be, for slow speech. A `speed` above 1 is ignored here, because the model may ignore it too."""
    wide = sum(character > "\u2e7f" for character in spoken)
    normal_ms = (len(spoken) - wide) * _LETTER_MS + wide * _SYLLABLE_MS + _PAUSES_MS
    return int(normal_ms / min(speed, 1.0)) + 1
