"""Compression of chats that end with a question: what it asks about is kept while anything else can be cut."""

import json

import pytest

from policies.compression import Strategy, compress_chat, text_tokens
from tests.policies.compression_chats import LOG, OTHER, call, chat, compressed, count, policy, result


@pytest.mark.parametrize(
    ("question", "cuts"),
    [
        ("Which worker copied batch b-5550?", True),
        ("And the files?", True),
        ("Continue with the task.", False),
        ("Please go on, then finish the work.", False),
        ("Find out whether the nightly backup of the customer database came up well.", False),
        ("", False),
    ],
)
def test_nothing_is_cut_without_a_question_unless_a_target_is_given(question: str, cuts: bool) -> None:
    messages = chat(call(1), result(1, LOG), question=question)
    outcome = compress_chat(messages, policy(), count)
    assert any(action.startswith("extractive=") for action in outcome.actions) is cuts
    to_target = compress_chat(messages, policy(), count, target_tokens=outcome.tokens_before // 3)
    assert any(action.startswith("extractive=") for action in to_target.actions)


@pytest.mark.parametrize("as_json", [False, True])
def test_ids_cut_from_a_listing_are_named_in_the_omission_marker(as_json: bool) -> None:
    listing = [{"pod": f"pod-{number}x", "state": "running", "note": "all is well in here"} for number in range(80)]
    listing_text = json.dumps(listing) if as_json else "\n".join(" ".join(record.values()) for record in listing)
    later = [
        message
        for start in range(0, 80, 8)
        for message in (call(start), result(start, " ".join(f"pod-{number}x" for number in range(start, start + 8))))
    ]
    cut = compressed(chat(call(1), result(1, listing_text), *later, question="What is running?"))[3]["content"]
    assert len(cut) < 0.7 * len(listing_text)
    assert all(f"pod-{number}x" in cut for number in range(80))
    assert " (naming pod-" in cut
    assert not as_json or json.loads(cut)


SUBJECTS = ("budget", "river bridge", "school roof", "market hall", "bus line", "library", "tax rate", "water pipes")
MINUTES = "\n\n".join(
    f"Please note that paragraph {number} is about the {SUBJECTS[number % 8]}: The committee met on day {number} and it was, "
    f"in order to be clear, decided that the {SUBJECTS[number % 8]} would be postponed    until meeting {number + 7}.   "
    f"It is important to note that member {number} objected."
    for number in range(64)
)
BRIDGE = "What was decided about the river bridge, when was it postponed until?"


@pytest.mark.parametrize("strategy", [Strategy.TRUNCATE, Strategy.EXTRACTIVE, Strategy.TEMPLATE, Strategy.STRUCTURAL])
@pytest.mark.parametrize("to_target", [False, True])
def test_minimum_quality_of_1_keeps_every_word(strategy: Strategy, to_target: bool) -> None:
    messages = chat(call(1, "fetch", url="https://x.io"), result(1, MINUTES + "\n" * 9), question=BRIDGE)
    outcome = compress_chat(
        messages, policy(strategy, min_quality=1.0), count, target_tokens=300 if to_target else None, intent="summarize"
    )
    assert outcome.messages is not None
    assert outcome.messages[3]["content"].split() == MINUTES.split()
    assert outcome.quality == 1.0


@pytest.mark.parametrize("strategy", [Strategy.TRUNCATE, Strategy.EXTRACTIVE])
@pytest.mark.parametrize("share", [None, 0.6, 0.3])
def test_passages_asked_about_are_kept_while_other_text_can_be_cut(strategy: Strategy, share: float | None) -> None:
    messages = chat(
        call(1, "fetch", url="https://x.io"), result(1, MINUTES), call(2), result(2, OTHER), question=BRIDGE
    )
    target = None if share is None else int(share * text_tokens(messages, count))
    outcome = compress_chat(messages, policy(strategy, target_ratio=0.4), count, target_tokens=target)
    assert outcome.messages is not None
    compressed_text = outcome.messages[3]["content"]
    assert len(compressed_text) < 0.8 * len(MINUTES)
    assert all(f"paragraph {number} is about the river bridge" in compressed_text for number in range(1, 64, 8))
    assert all(f"until meeting {number + 7}" in compressed_text for number in range(1, 64, 8))
    assert outcome.quality < 1.0


RULES = " ".join(
    f"Mind {first}{ending}." for first in "bdfglmprst" for ending in ("avel", "onic", "ustor", "enda", "ilk", "ark")
)


@pytest.mark.parametrize(
    ("line", "asked", "question"),
    [
        pytest.param(
            "第{}号倉庫の青い自転車は佐藤さんが{}日に出荷しました。",
            "名古屋の倉庫にある緑の冷蔵庫は山本さんが修理しました。",
            "名古屋の緑の冷蔵庫はどうなりましたか？",
            id="Japanese",
        ),
        pytest.param(
            "第{}号仓库的自行车由王伟在第{}天发货。",
            "成都仓库的绿色冰箱由刘洋修理。",
            "成都的绿色冰箱怎么样了？",
            id="Chinese",
        ),
        pytest.param(
            "창고 {}의 파란 자전거는 김민수가 {}일에 발송했습니다.",
            "부산의 초록색 냉장고는 박지훈이 수리했습니다.",
            "부산에 있는 초록색 냉장고가 어떻게 되었나요?",
            id="Korean",
        ),
        pytest.param(
            "Store {} sent the blue bicycle on day {}.",
            "The green fridge of Nagoya was repaired.",
            RULES + " What of the green fridge of Nagoya?",
            id="question after many rules",
        ),
        pytest.param(
            "Store {} sent the blue bicycle on day {}.",
            "The green fridge of Nagoya was repaired.",
            "What of the green fridge of Nagoya? " + RULES,
            id="question before many rules",
        ),
    ],
)
def test_passage_asked_about_is_kept_in_any_script_and_with_long_rules(line: str, asked: str, question: str) -> None:
    lines = [line.format(number, number * 7 % 31) for number in range(80)]
    lines[51] = asked
    messages = chat(call(1), result(1, "\n".join(lines)), question=question)
    target = int(0.5 * count("\n".join(lines)) + count(question))
    outcome = compress_chat(messages, policy(), count, target_tokens=target)
    assert outcome.messages is not None
    assert asked in outcome.messages[3]["content"]
    assert outcome.tokens_after <= target


def test_prose_without_spaces_or_newlines_is_cut_between_sentences() -> None:
    sentences = [f"第{number}号仓库的自行车由王伟在第{number * 7 % 31}天发货。" for number in range(60)]
    sentences[37] = "成都仓库的绿色冰箱由刘洋修理。"
    messages = chat(call(1), result(1, "".join(sentences)), question="成都仓库的绿色冰箱由谁修理？")
    after = compressed(messages, policy(min_quality=0.8))[3]["content"]
    assert sentences[37] in after
    assert len(after) < 0.8 * len("".join(sentences))


def test_passages_asked_about_are_cut_if_nothing_else_is_left() -> None:
    two_subjects = "\n\n".join(part for part in MINUTES.split("\n\n") if "bridge" in part or "roof" in part)
    messages = chat(call(1, "fetch", url="https://x.io"), result(1, two_subjects), question=BRIDGE)
    outcome = compress_chat(messages, policy(), count, target_tokens=200)
    assert outcome.messages is not None
    compressed_text = outcome.messages[3]["content"]
    assert 0 < compressed_text.count("is about the river bridge") < 8
    assert "school roof" not in compressed_text


def test_any_loss_lowers_the_reported_quality_below_1() -> None:
    names = (
        "apple",
        "birch",
        "cedar",
        "daisy",
        "elder",
        "flora",
        "grass",
        "hazel",
        "iris",
        "juniper",
        "kale",
        "lilac",
        "maple",
    )
    lines = [f"{first} {second} {third}" for first in names for second in names for third in names]
    messages = chat(call(1), result(1, "\n".join(lines)), question="What of the files?")
    outcome = compress_chat(messages, policy(), count, target_tokens=text_tokens(messages, count) - 40)
    assert outcome.tokens_saved > 0
    assert 0.99 < outcome.quality < 1.0


def test_prose_with_irregular_spacing_loses_its_boilerplate() -> None:
    messages = chat(call(1, "fetch", url="https://x.io"), result(1, MINUTES), question=BRIDGE)
    after = compressed(messages, policy(Strategy.TEMPLATE), intent="summarize")
    assert "Please note that" not in after[3]["content"]
