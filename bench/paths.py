"""The requests of each measured path, and the answers of the mock upstream.

The last message differs from call to call, as in an agent's requests: a gateway may cache what it has seen, but has to process
what is new. `--prompts repeated` sends the same bytes every time, `--prompts unseen` changes every message.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

Prompts = Literal["fresh", "repeated", "unseen"]

# One token each, so that the usage that the mock reports is below what any tokenizer counts: an answer that costs more than
# was counted is an overrun, which is logged, and logging would be measured, too.
_TEXT: Final = (
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these would "
    "other into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water long little very after words called just where most know"
)
_WORDS: Final = tuple(_TEXT.split())
_ID_DIGITS: Final = 12
# Placeholders for a call's number: in the last message, and in those before it.
_LAST: Final = b"#" * _ID_DIGITS
_EARLIER: Final = b"~" * _ID_DIGITS
# Half of what tokenizers count for these words, which have 4.5 characters on average with their space, and are a token each.
_BYTES_A_TOKEN: Final = 8
_OUTPUT_TOKENS_A_CHUNK: Final = 1


@dataclass(frozen=True, slots=True)
class Path:
    """One kind of call. `name` is also the upstream's model, by which the mock chooses its answer."""

    name: str
    title: str
    request_bytes: int
    answer_bytes: int = 0  # size of a buffered answer
    chunks: int = 0  # text events in a streamed one
    pace_ms: float | None = None  # pause between two events; None: the whole stream in one write
    turns: int = 0  # turns of a conversation whose requests grow to `request_bytes`
    calls_each: int = 0  # calls per connection, if a round is a fixed amount of work instead of time
    connections_max: int = 512

    @property
    def streams(self) -> bool:
        return self.chunks > 0


PATHS: Final = {
    path.name: path
    for path in (
        Path("1k", "buffered, 1 KB there and back", 1_024, answer_bytes=1_024),
        Path("32k", "buffered, 32 KB there and back", 32_768, answer_bytes=32_768),
        Path("burst-20", "stream of 20 chunks in one write", 1_024, chunks=20),
        Path("stream-20", "stream of 20 chunks, 5 ms apart", 1_024, chunks=20, pace_ms=5.0, calls_each=8),
        Path(
            "stream-500",
            "stream of 500 chunks, 2 ms apart",
            1_024,
            chunks=500,
            pace_ms=2.0,
            calls_each=1,
            connections_max=64,
        ),
        Path(
            "stream-slow",
            "stream of 40 chunks, 250 ms apart",
            1_024,
            chunks=40,
            pace_ms=250.0,
            calls_each=1,
            connections_max=2_000,
        ),
        Path(
            "conversation",
            "50 turns that grow to 100,000 tokens",
            480_000,
            answer_bytes=1_024,
            turns=50,
            calls_each=50,
            connections_max=64,
        ),
    )
}


class Requests:
    """The bodies that one connection sends, one after another. The same for equal paths and numbers."""

    def __init__(self, path: Path, model: str, prompts: Prompts, connection: int) -> None:
        self._path = path
        self._prompts = prompts
        self._model = model
        self._number = connection * 10_000_000
        self._template = b"" if path.turns else _single(path, model)
        self._history: list[bytes] = []
        self._turn = 0

    def following(self) -> bytes:
        """The next body. A conversation starts over after its last turn."""
        self._number += self._prompts != "repeated"
        if self._path.turns:
            return self._next_turn()
        return self._numbered(self._template)

    @property
    def begins_run(self) -> bool:
        """Whether the last body was the first of a conversation."""
        return self._turn == 1

    def _numbered(self, template: bytes) -> bytes:
        number = b"%0*d" % (_ID_DIGITS, self._number)
        earlier = number if self._prompts == "unseen" else b"0" * _ID_DIGITS
        return template.replace(_EARLIER, earlier).replace(_LAST, number)

    def _next_turn(self) -> bytes:
        path = self._path
        if self._turn == path.turns:
            self._history, self._turn = [], 0
        size = path.request_bytes // (2 * path.turns)
        if self._turn:
            self._history.append(_message("assistant", size, _LAST, seed=2 * self._turn))
        self._history.append(_message("user", size, _LAST, seed=2 * self._turn + 1))
        self._history[-2:] = [self._numbered(message) for message in self._history[-2:]]
        self._turn += 1
        return _body(self._model, self._history, streams=False)


@lru_cache(maxsize=16)
def _single(path: Path, model: str) -> bytes:
    """A system message, as much history as needed, and the message that changes: a quarter of the whole, at most 2 KB."""
    last_bytes = min(2_048, path.request_bytes // 4)
    earlier_bytes = path.request_bytes - last_bytes - 160
    pieces = max(1, earlier_bytes // 4_096)
    roles = ["system", *("assistant" if number % 2 else "user" for number in range(pieces - 1))]
    messages = [_message(role, earlier_bytes // pieces, _EARLIER, seed=number) for number, role in enumerate(roles)]
    messages.append(_message("user", last_bytes, _LAST, seed=99))
    return _body(model, messages, streams=path.streams)


def _body(model: str, messages: list[bytes], *, streams: bool) -> bytes:
    head = b'{"model":"%s","temperature":0.2,' % model.encode()
    if streams:
        head += b'"stream":true,"stream_options":{"include_usage":true},'
    return head + b'"messages":[' + b",".join(messages) + b"]}"


@lru_cache(maxsize=1_024)
def _message(role: str, size: int, mark: bytes, seed: int) -> bytes:
    """About `size` bytes of JSON."""
    head = f"Note {mark.decode()}: "
    text = head + words(max(8, size - len(head) - len(role) - 28), seed)
    return json.dumps({"role": role, "content": text}, separators=(",", ":")).encode()


def words(characters: int, seed: int) -> str:
    chance = random.Random(seed)  # the same text in every run, so that runs can be compared
    chosen: list[str] = []
    while characters > 0:
        chosen.append(chance.choice(_WORDS))
        characters -= len(chosen[-1]) + 1
    return " ".join(chosen)


@lru_cache(maxsize=4_096)
def buffered_answer(path: Path, request_kilobytes: int) -> bytes:
    """A complete HTTP response. The usage that it reports grows with the request."""
    content = words(path.answer_bytes - 330, seed=7)
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": path.name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _usage(path, request_kilobytes),
    }
    data = json.dumps(body, separators=(",", ":")).encode()
    return _head(b"application/json", b"content-length: %d" % len(data)) + data


@lru_cache(maxsize=4_096)
def streamed_answer(path: Path, request_kilobytes: int, with_usage: bool) -> tuple[bytes, ...]:
    """The writes that make up a chunked HTTP response: its head, its events, its end."""
    choices = [_choice({"role": "assistant", "content": ""})]
    choices += [_choice({"content": f" {word}"}) for word in words(path.chunks * 5, seed=7).split()[: path.chunks]]
    choices += [_choice({"content": " end"})] * (path.chunks + 1 - len(choices))
    choices.append(_choice({}, "stop"))
    events = [_event(path, {"choices": [choice]}) for choice in choices]
    if with_usage:
        events.append(_event(path, {"choices": [], "usage": _usage(path, request_kilobytes)}))
    head = _head(b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")
    ended = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    if path.pace_ms is None:
        return (b"".join([head, *events, ended]),)
    return (head, *events[:-1], events[-1] + ended)


def _usage(path: Path, request_kilobytes: int) -> dict[str, int]:
    prompt = max(1, request_kilobytes * 1_024 // _BYTES_A_TOKEN)
    output = path.chunks * _OUTPUT_TOKENS_A_CHUNK or min(4_000, path.answer_bytes // _BYTES_A_TOKEN)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(path: Path, fields: dict[str, object]) -> bytes:
    event = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": path.name}
    return _chunk(b"data: " + json.dumps(event | fields, separators=(",", ":")).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _head(content_type: bytes, framing: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n" % (content_type, framing)
