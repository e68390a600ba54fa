"""The load generator: keep-alive connections, each of which sends its next call when the last one is answered. A separate process.

It reads `LoadSpec`s from its standard input, one line of JSON each, and answers each with a `LoadResult` on its standard output. An
answer counts if its status is 200, its framing is complete and its content is what was requested; the first of every connection
is parsed as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Final

import httptools

from bench.event_loop import run
from bench.measure import cpu_ns_of, percentile
from bench.paths import PATHS, Path, Prompts, Requests

_CALLS_A_RUN: Final = 20
_STEPS: Final = ("plan", "search", "read", "write")
_SAMPLE_S: Final = 0.05
_ERRORS_SHOWN_MAX: Final = 3
_SHOWN: Final = 250
# Names and figures of a single call are removed from error texts, so that equal errors are counted together.
_CALL_SPECIFIC: Final = re.compile(r"""'[^']*'|\d{4,}|(?<="request_id":")[^"]*|(?<="run":")[^"]*""")
_FIRST_CALLS_MAX_S: Final = 10.0
_CALL_MAX_S: Final = 60.0  # more than any of these calls takes, even with the slowest gateway


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One round against one server. `nonce` makes its run ids unique."""

    host: str
    port: int
    path: str
    model: str
    connections: int
    seconds: float
    warm_up_seconds: float
    headers: dict[str, str]
    is_tagged: bool
    prompts: Prompts
    nonce: str
    processes: list[int]  # whose CPU time is measured
    calls_each: int = 0  # calls per connection; 0: as many as the time allows


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of one round. CPU is that of the measured processes; `quiet` is the lower quartile of windows of 50 ms."""

    calls: int
    seconds: float
    cpu_us: float
    quiet_cpu_us: float
    p50_ms: float
    p99_ms: float
    first_byte_p50_ms: float
    own_cpu_share: float  # share of a core used by this process: near 1, the generator itself is measured
    failed: int
    errors: list[str] = field(default_factory=list)


class LoadRound:
    """All connections of a round, and their counts."""

    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        self.path = PATHS[spec.path]
        self.is_measuring = False
        self.is_over = False
        self.calls = 0
        self.failed = 0
        self.errors: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self.first_bytes_s: list[float] = []
        self.samples: list[tuple[int, int]] = []  # CPU time in ns, calls
        self._idle = spec.connections
        self._answered = 0
        self._done = asyncio.Event()

    async def work(self) -> LoadResult:
        loop = asyncio.get_running_loop()
        spec = self.spec
        connections = [Connection(self, number) for number in range(spec.connections)]
        for connection in connections:
            await loop.create_connection(lambda one=connection: one, spec.host, spec.port)  # type: ignore[misc]
        if not self.spec.calls_each:
            for connection in connections:
                connection.begin()
            await asyncio.sleep(spec.warm_up_seconds)
            await self._until(lambda: self._answered >= spec.connections)
        began_s, began_own = perf_counter(), cpu_ns_of([0])
        self.is_measuring = True
        self._sample(loop)
        if self.spec.calls_each:
            for connection in connections:
                connection.begin()
            await self._finish(_CALL_MAX_S)
        else:
            await asyncio.sleep(spec.seconds)
            await self._until(lambda: self.calls >= spec.connections)
        self.is_measuring = False
        self._take_sample()
        result = self._result(perf_counter() - began_s, cpu_ns_of([0]) - began_own)
        self.is_over = True
        await self._finish(_CALL_MAX_S)
        for connection in connections:
            connection.close()
        return result

    async def _until(self, reached: Callable[[], bool]) -> None:
        """With a slow gateway, the ordered time may be shorter than one call per connection."""
        patience_s = perf_counter() + _FIRST_CALLS_MAX_S
        while not reached() and not self.failed and perf_counter() < patience_s:
            await asyncio.sleep(_SAMPLE_S)

    async def _finish(self, seconds: float) -> None:
        """Lets calls in flight finish: otherwise their remains would be work for the next round."""
        try:
            await asyncio.wait_for(self._done.wait(), seconds)
        except TimeoutError:
            self.record_failure("not answered in time")

    def record_answer(self, took_s: float, first_byte_s: float) -> None:
        self._answered += 1
        if self.is_measuring:
            self.calls += 1
            self.latencies_s.append(took_s)
            self.first_bytes_s.append(first_byte_s)

    def connection_done(self) -> None:
        self._idle -= 1
        if not self._idle:
            self._done.set()

    def record_failure(self, failure: str) -> None:
        self.failed += 1
        self.errors[failure] += 1

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.is_measuring:
            self._take_sample()
            loop.call_later(_SAMPLE_S, self._sample, loop)

    def _take_sample(self) -> None:
        self.samples.append((cpu_ns_of(self.spec.processes), self.calls))

    def _result(self, seconds: float, own_ns: int) -> LoadResult:
        latencies = sorted(self.latencies_s)
        cpu = self.samples[-1][0] - self.samples[0][0]
        return LoadResult(
            calls=self.calls,
            seconds=seconds,
            cpu_us=cpu / max(1, self.calls) / 1000,
            quiet_cpu_us=self._quiet_cpu_us(),
            p50_ms=percentile(latencies, 0.5) * 1000,
            p99_ms=percentile(latencies, 0.99) * 1000,
            first_byte_p50_ms=percentile(sorted(self.first_bytes_s), 0.5) * 1000,
            own_cpu_share=own_ns / 1e9 / seconds,
            failed=self.failed,
            errors=[f"{times} × {failure}" for failure, times in self.errors.most_common(_ERRORS_SHOWN_MAX)],
        )

    def _quiet_cpu_us(self) -> float:
        """0 for rounds with a fixed number of calls: these calls are longer than a window, and begin and end together."""
        if self.spec.calls_each:
            return 0.0
        windows = sorted(
            (late[0] - early[0]) / (late[1] - early[1])
            for early, late in zip(self.samples, self.samples[1:], strict=False)
            if late[1] > early[1]
        )
        return percentile(windows, 0.25) / 1000


class Connection(asyncio.Protocol):
    def __init__(self, load_round: LoadRound, number: int) -> None:
        spec = load_round.spec
        self._round = load_round
        self._number = number
        self._requests = Requests(load_round.path, spec.model, spec.prompts, number)
        self._fixed = _fixed_head(spec)
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._calls = 0
        self._run = 0
        self._sent_s = self._first_s = 0.0
        self._is_waiting = False
        self._is_finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: uvloop's transports do not derive from asyncio's.
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._is_waiting:
            self._is_waiting = False
            self._round.record_failure("the connection was closed before the answer was there")
        self._finish_connection()

    def begin(self) -> None:
        self._send()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._pieces:
            self._first_s = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._round.record_failure(f"the answer is not HTTP: {error}")
            self.close()

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        took_s = perf_counter() - self._sent_s
        self._is_waiting = False
        load_round = self._round
        body = b"".join(self._pieces)
        self._pieces.clear()
        fault = _fault(load_round.path, self._parser.get_status_code(), body, parse=self._calls == 1)
        if fault:
            load_round.record_failure(fault)
        else:
            load_round.record_answer(took_s, self._first_s - self._sent_s)
        if load_round.is_over or self._calls == load_round.spec.calls_each:
            self._finish_connection()
        elif self._parser.should_keep_alive():
            self._send()
        else:
            load_round.record_failure("the server closes its connections")
            self._finish_connection()

    def _finish_connection(self) -> None:
        if not self._is_finished:
            self._is_finished = True
            self._round.connection_done()

    def _send(self) -> None:
        if self._transport is None:
            self._finish_connection()
            return
        body = self._requests.following()
        head = self._fixed + self._tags() + b"content-length: %d\r\n\r\n" % len(body)
        self._calls += 1
        self._is_waiting = True
        self._sent_s = perf_counter()
        self._transport.write(head + body)

    def _tags(self) -> bytes:
        spec = self._round.spec
        if not spec.is_tagged:
            return b""
        if self._requests.begins_run if self._round.path.turns else self._calls % _CALLS_A_RUN == 0:
            self._run += 1
        run_id = f"{spec.nonce}-{self._number}-{self._run}"
        step = _STEPS[self._calls % len(_STEPS)]
        tags = f"x-workflow-id: bench\r\nx-workflow-run-id: {run_id}\r\nx-workflow-step: {step}\r\n"
        return tags.encode()


def _fixed_head(spec: LoadSpec) -> bytes:
    headers = {"host": f"{spec.host}:{spec.port}", "content-type": "application/json", **spec.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}".encode()


def _fault(path: Path, status: int, body: bytes, *, parse: bool) -> str | None:
    """Why an answer is not the requested one."""
    if status != 200:
        return f"status {status}: {_CALL_SPECIFIC.sub('…', body.decode(errors='replace'))[:_SHOWN]}"
    if path.streams:
        return _stream_fault(path, body, parse=parse)
    if len(body) < path.answer_bytes * 3 // 4:
        return f"{len(body)} bytes, too few for the answer"
    if parse and "content" not in json.loads(body)["choices"][0]["message"]:
        return "an answer without content"
    return None


def _stream_fault(path: Path, body: bytes, *, parse: bool) -> str | None:
    if not body.rstrip().endswith(b"data: [DONE]"):
        return f"a stream that does not end in [DONE]: {body[-200:].decode(errors='replace')}"
    if body.count(b"data: {") < path.chunks:
        return "a stream with too few events"
    if parse:
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
        texts = [choice["delta"].get("content") for event in events for choice in event.get("choices", ())]
        if sum(1 for text in texts if text) < path.chunks:
            return "a stream with too little text"
    return None


def main() -> None:
    for line in sys.stdin:
        result = run(_work(LoadSpec(**json.loads(line))))
        print(json.dumps(asdict(result)), flush=True)
        gc.collect()  # connections and their round are a reference cycle


async def _work(spec: LoadSpec) -> LoadResult:
    return await LoadRound(spec).work()


if __name__ == "__main__":
    main()
