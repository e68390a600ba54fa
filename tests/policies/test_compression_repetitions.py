"""Compression of chats that repeat a text: the repetition becomes a reference to the first occurrence."""

import json
import re

from policies.compression import Aggressiveness, Strategy, compress_chat, text_tokens
from tests.policies.compression_chats import LOG, call, chat, compressed, count, policy, result


def test_repeated_result_becomes_a_reference_and_the_original_stays() -> None:
    messages = chat(call(1), result(1, LOG), call(2), result(2, "other"), call(3), result(3, LOG))
    for strategy in (Strategy.STRUCTURAL, Strategy.EXTRACTIVE):
        after = compressed(messages, policy(strategy, aggressiveness=Aggressiveness.LOW))
        assert re.fullmatch(r"\[… 300 lines as in message 4 \(read_log\) · [0-9a-f]{4} …\]", after[7]["content"])
        assert after[3]["content"] == LOG


def test_repeated_json_becomes_a_reference_that_is_valid_json() -> None:
    listing = json.dumps([{"id": number, "name": f"n{number}"} for number in range(50)])
    after = compressed(chat(call(1), result(1, listing), call(2), result(2, listing)), policy(Strategy.STRUCTURAL))
    assert json.loads(after[5]["content"]).startswith("[… 1 line as in message 4 (read_log) · ")


def test_repeated_block_is_replaced_and_the_rest_stays() -> None:
    lines = LOG.split("\n")
    second = "\n".join([*lines[100:200], "2026-11-22 11:00:00 INFO all done"])
    after = compressed(
        chat(call(1), result(1, LOG), call(2), result(2, second)),
        policy(Strategy.STRUCTURAL, aggressiveness=Aggressiveness.LOW),
    )
    assert re.fullmatch(
        r"\[… 100 lines as in message 4 \(read_log\) · .{4} …\]\n2026-11-22 11:00:00 INFO all done", after[5]["content"]
    )


def test_code_becomes_a_reference_only_if_all_of_it_is_repeated() -> None:
    source = "".join(f"def run{number}(order):\n    return order + {number}\n\n\n" for number in range(30))
    changed = source.replace("order + 7", "order - 7")
    after = compressed(
        chat(call(1), result(1, source), call(2), result(2, source), call(3), result(3, changed)),
        policy(Strategy.STRUCTURAL),
    )
    assert after[3]["content"] == source
    assert "as in message 4" in after[5]["content"]
    assert after[7]["content"] == changed


def test_fenced_code_after_a_repeated_block_is_unchanged() -> None:
    fence = "```python\n" + "    queue.put(next_order(), timeout=SECONDS)\n" * 6 + "```"
    after = compressed(
        chat(call(1), result(1, LOG), call(2), result(2, f"{LOG}\n{fence}")), policy(Strategy.STRUCTURAL)
    )
    assert after[5]["content"].startswith("[…")
    assert after[5]["content"].endswith(fence)


def test_referenced_result_is_cut_only_to_reach_a_target() -> None:
    messages = chat(call(1), result(1, LOG), call(2), result(2, LOG))
    assert " left out" not in compressed(messages)[3]["content"]
    to_target = compress_chat(messages, policy(), count, target_tokens=text_tokens(messages, count) // 8)
    assert to_target.tokens_after <= to_target.tokens_before // 8
    assert to_target.messages is not None
    assert " left out · " in to_target.messages[3]["content"]
