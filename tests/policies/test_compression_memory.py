"""Compression of memory: what an agent remembers of its user and of past runs."""

import pytest

from policies.compression import Strategy
from tests.policies.compression_chats import LOG, Message, call, chat, compressed, count, policy, result

MEMORY = "\n".join(
    [
        "# User context",
        "The user is Ann, a buyer at Nordlicht in Hamburg, who prefers short answers in German.",
        "",
        "# Past runs",
    ]
    + [
        f"- 2026-{month:02d}-01: run r-{month} compared {month * 9} offers and chose supplier S{month}."
        for month in range(1, 13)
    ]
)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "name": "memory", "content": MEMORY},
        {"role": "system", "name": "memory_runs", "content": MEMORY},
        {"role": "user", "content": f"<memory>\n{MEMORY}\n</memory>"},
    ],
)
def test_memory_is_cut_to_its_limit_keeping_user_facts_and_newest_runs(message: Message) -> None:
    messages = chat(question="Who am I?")
    messages.insert(1, message)
    after = compressed(messages, policy(Strategy.STRUCTURAL, min_quality=0.8), memory_tokens_max=160)
    assert count(after[1]["content"]) <= 160
    assert "Ann, a buyer at Nordlicht" in after[1]["content"]
    assert "run r-12 " in after[1]["content"]
    assert "run r-2 " not in after[1]["content"]
    assert compressed(after, policy(Strategy.STRUCTURAL), memory_tokens_max=160) == after


def test_memory_within_its_limit_is_not_cut() -> None:
    messages = chat(call(1), result(1, LOG))
    messages.insert(1, {"role": "user", "name": "memory", "content": MEMORY})
    after = compressed(messages, policy(target_ratio=0.1))
    assert after[1]["content"] == MEMORY
    assert len(after[4]["content"]) < len(LOG) / 2


def test_undated_runs_in_memory_count_as_newer_the_later_they_stand() -> None:
    memory = "\n".join(
        f"Run {number} ended well after comparing the offers of several suppliers." for number in range(60)
    )
    messages = chat()
    messages.insert(1, {"role": "user", "name": "memory", "content": memory})
    after = compressed(messages, memory_tokens_max=200)[1]["content"]
    assert "Run 59 " in after
    assert "Run 3 " not in after
