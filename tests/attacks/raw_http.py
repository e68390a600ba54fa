"""HTTP as an attacker writes it: bytes on a socket, and the answers until the server closes."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

CHAT = b'{"model":"fake","messages":[{"role":"user","content":"hi"}],"max_tokens":20}'


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class RawReply:
    """Everything that came back on one connection."""

    raw: bytes
    is_closed: bool  # by the server

    @property
    def answers(self) -> list[Answer]:
        answers, unread = [], self.raw
        while unread:
            head, _, unread = unread.partition(b"\r\n\r\n")
            line, *lines = head.split(b"\r\n")
            matched = re.match(rb"HTTP/1\.1 (\d{3}) ", line)
            assert matched, f"not the beginning of an answer: {self.raw[:400]!r}"
            headers = dict(part.decode("latin-1").lower().split(": ", 1) for part in lines)
            size = int(headers.get("content-length", 0))
            if int(matched[1]) >= 200:
                answers.append(Answer(int(matched[1]), headers, unread[:size]))
                unread = unread[size:]
        return answers

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


def connect(url: str, timeout_s: float = 5.0) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout_s)


def read_reply(connection: socket.socket, seconds: float) -> RawReply:
    """Until the server closes or `seconds` are over."""
    deadline, raw = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            piece = connection.recv(65536)
        except TimeoutError:
            break
        except OSError:
            return RawReply(raw, is_closed=True)
        if not piece:
            return RawReply(raw, is_closed=True)
        raw += piece
    return RawReply(raw, is_closed=False)


def exchange(url: str, sent: bytes, seconds: float = 20.0) -> RawReply:
    """The answers to these bytes. A last request asks the server to close the connection, which shows where the answers end; its own
    answer is left out."""
    with connect(url) as connection:
        try:
            connection.sendall(sent)
            connection.sendall(_CLOSING_REQUEST)
        except OSError:  # the server has closed already
            pass
        reply = read_reply(connection, seconds)
        closing = _CLOSING_ANSWER.search(reply.raw)
        return reply if closing is None else RawReply(reply.raw[: closing.start()], is_closed=False)


def request(
    method: bytes = b"POST",
    path: bytes = b"/v1/chat/completions",
    headers: list[bytes] | None = None,
    body: bytes = CHAT,
    *,
    host: bytes | None = b"127.0.0.1",
    length: bool = True,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """A correct request, except for what the arguments make wrong. `headers` are whole lines without their end."""
    lines = [method + b" " + path + b" " + version]
    if host is not None:
        lines.append(b"host: " + host)
    lines.append(b"content-type: application/json")
    if length:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, *(headers or []), b"", body])


_CLOSING_REQUEST = request(b"GET", b"/livez?goodbye", [b"connection: close"], b"", length=False)
_CLOSING_ANSWER = re.compile(
    rb'HTTP/1\.1 200 OK\r\n(?:[^\r\n]+\r\n)*connection: close\r\n(?:[^\r\n]+\r\n)*\r\n{"status":"alive"}\Z'
)
