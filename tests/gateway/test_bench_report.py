"""The figures that bench/ derives from several measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import report
from bench.chunks import chunk_costs
from bench.latency import added_latencies
from bench.load import LoadResult
from bench.rounds import Line


def _result(**figures: Any) -> LoadResult:
    usual = {"calls": 10, "seconds": 1.0, "cpu_us": 0.0, "quiet_cpu_us": 0.0, "p50_ms": 0.0, "p99_ms": 0.0}
    return LoadResult(**{**usual, "first_byte_p50_ms": 0.0, "own_cpu_share": 0.1, "failed": 0, **figures})


def _line(target: str, path: str, connections: int, *rounds: LoadResult, cpu_us: float = 0.0) -> Line:
    figures = dict.fromkeys(("calls_per_second", "quiet_cpu_us", "ratio", "quiet_ratio", "p50_ms", "p99_ms"), 1.0)
    other_figures = {"first_byte_p50_ms": 1.0, "memory_mb": 1.0, "generator_share": 0.1, "failed": 0, "errors": ()}
    return Line(path, connections, target, cpu_us=cpu_us, **figures, **other_figures, rounds=rounds)  # type: ignore[arg-type]


def test_added_latency_is_relative_to_the_mock_in_the_same_round() -> None:
    direct = _line("mock", "1k", 1, _result(p50_ms=1.0, p99_ms=2.0), _result(p50_ms=3.0, p99_ms=8.0))
    tagged = _line("tagged", "1k", 1, _result(p50_ms=1.5, p99_ms=4.0), _result(p50_ms=3.7, p99_ms=10.0))
    busy = _line("tagged", "1k", 64, _result(p50_ms=90.0))
    (latency,) = added_latencies([direct, tagged, busy])
    assert latency.target == "tagged"
    assert (round(latency.added_p50_ms, 6), latency.added_p99_ms) == (0.6, 2.0)
    assert (latency.noise_p50_ms, latency.noise_p99_ms) == (1.0, 3.0)


def test_added_latency_omits_paced_streams_and_targets_without_a_mock_run() -> None:
    paced = [_line(target, "stream-500", 1, _result(p50_ms=1_000.0)) for target in ("mock", "tagged")]
    assert added_latencies([*paced, _line("tagged", "1k", 1, _result())]) == []


def test_chunk_cost_is_relative_to_the_passthrough_of_the_same_round() -> None:
    base = _line("passthrough", "stream-500", 16, _result(cpu_us=10_000.0), _result(cpu_us=20_000.0), cpu_us=15_000.0)
    tagged = _line("tagged", "stream-500", 16, _result(cpu_us=15_000.0), _result(cpu_us=26_000.0), cpu_us=20_500.0)
    short = _line("tagged", "stream-20", 16, _result(cpu_us=900.0))
    own, farebox = chunk_costs([base, tagged, short])
    assert (own.cpu_us, own.beyond_us) == (30.0, 0.0)
    assert (farebox.cpu_us, farebox.beyond_us) == (41.0, 11.0)


def test_document_keeps_prose_and_replaces_measurements(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\n\nWords.\n")
    lines = [_line(target, "1k", 1, _result(p50_ms=2.0)) for target in ("mock", "passthrough", "tagged")]
    facts = report.facts_of(rounds=1, seconds=1.0, prompts="fresh", date="2026-11-28")
    for command in ("python -m bench --first", "python -m bench --second"):
        report.write_document(document, lines, facts, {"portkey": "no npm"}, command)
    text = document.read_text()
    assert "Words." in text
    assert "--second" in text
    assert "--first" not in text
    assert "### Latency added at one connection" in text
    assert "- Not measured: portkey, no npm" in text
    assert "vllm-router" in text  # the versions of the other gateways
