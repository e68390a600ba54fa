"""`make eval-compression`: how much each strategy saves on real agent histories, and what can still be answered afterwards.

Histories are assembled from what is on the machine: the READMEs, data files and sources of installed packages, the
pages that pydoc writes, and recorded logs (`bench/compression/logs.json.gz`). For each there are questions whose answer
stands in a tool result (`bench/compression/histories.json`). A question counts as answerable after compression when its
answer still stands near the words that it belongs to.

Each question is also asked in a step of one turn, where its text stands in the newest user turn itself (`--one-turn` alone).

Three conditions: *asked*, where the question is the newest user turn, as when an agent works towards it; *unasked*, where
the compressor sees only "Continue with the task." and the question comes later; and *goal*, where it sees what the whole
history was for, which is none of the questions. Prompts of real workflows come
from the reference data (`FAREBOX_REFERENCE`, or `../shared/reference` beside the repository) and are left out without it.
"""

import argparse
import asyncio
import gzip
import importlib
import json
import os
import pydoc
import re
import statistics
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from gateway.tokenizer import Tokenizer
from policies.compression import Aggressiveness, CompressionPolicy, Strategy, compress_chat
from policies.compression.json_text import looks_like_json
from policies.compression.structural import compress_structure

DATA = Path(__file__).parent / "compression"
SITE = Path(sysconfig.get_paths()["purelib"])
ENCODING = "o200k_base"
UNASKED = "Continue with the task."
Message = dict[str, Any]
CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Question:
    """`answers` and `near` are lists of alternatives; one of each must stand close to the other."""

    text: str
    answers: tuple[str, ...]
    near: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class History:
    name: str
    messages: list[Message]
    questions: list[Question]
    near_characters: int
    goal: str

    def asked(self, instruction: str) -> list[Message]:
        return [*self.messages, {"role": "user", "content": instruction}]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report: a policy, and the share of a chat's tokens that it has to fit (None: by ratio)."""

    strategy: Strategy
    aggressiveness: Aggressiveness = Aggressiveness.MEDIUM
    ratio: float = 0.5
    min_quality: float = 0.8
    fit_share: float | None = None

    @property
    def policy(self) -> CompressionPolicy:
        return CompressionPolicy(self.strategy, self.ratio, self.min_quality, self.aggressiveness)

    @property
    def label(self) -> str:
        how = f"fit {self.fit_share:.0%}" if self.fit_share is not None else f"ratio {self.ratio}"
        lossless = self.strategy in (Strategy.STRUCTURAL, Strategy.TEMPLATE)
        return f"{self.strategy}, {self.aggressiveness}" + (
            "" if lossless else f", {how}, quality ≥ {self.min_quality}"
        )


@dataclass(slots=True)
class Tally:
    before: int = 0
    after: int = 0
    kept: int = 0
    asked: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    qualities: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def saved(self) -> float:
        return 1 - self.after / self.before if self.before else 0.0

    @property
    def answerable(self) -> float:
        return self.kept / self.asked if self.asked else 1.0


ROWS = (
    Row(Strategy.STRUCTURAL, Aggressiveness.LOW),
    Row(Strategy.STRUCTURAL),
    Row(Strategy.STRUCTURAL, Aggressiveness.HIGH),
    Row(Strategy.TEMPLATE),
    Row(Strategy.TRUNCATE),
    Row(Strategy.EXTRACTIVE, Aggressiveness.LOW),
    Row(Strategy.EXTRACTIVE),
    Row(Strategy.EXTRACTIVE, Aggressiveness.HIGH),
    Row(Strategy.EXTRACTIVE, Aggressiveness.HIGH, ratio=0.3, min_quality=0.7),
    Row(Strategy.EXTRACTIVE, fit_share=0.6),
    Row(Strategy.EXTRACTIVE, fit_share=0.4, min_quality=0.6),
    Row(Strategy.TRUNCATE, fit_share=0.4, min_quality=0.6),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--lost", action="store_true", help="name the questions that became unanswerable")
    arguments.add_argument("--speed", action="store_true", help="measure only the speed")
    arguments.add_argument("--one-turn", action="store_true", help="measure only the prompts of one turn")
    arguments.add_argument("--json", type=Path, help="also write the figures to this file")
    chosen = arguments.parse_args()
    count = token_counter()
    histories, missing = load_histories()
    describe(histories, missing, count)
    if chosen.speed:
        return speed(histories, count)
    if chosen.one_turn:
        return report_one_turn(histories, count)
    report = [evaluate_row(row, histories, count) for row in ROWS]
    print_rows(report, chosen.lost)
    print_by_history(histories, count)
    speed(histories, count)
    report_one_turn(histories, count)
    prompts(count)
    if chosen.json:
        chosen.json.write_text(json.dumps([figures(row, *tallies) for row, *tallies in report], indent=1) + "\n")


def token_counter() -> CountTokens:
    tokenizer = Tokenizer()
    asyncio.run(tokenizer.load(ENCODING))
    return lambda text: tokenizer.count_text(ENCODING, text)


# Material


def load_histories() -> tuple[list[History], list[str]]:
    """The histories, and what this machine lacks: missing sources, and questions that their versions do not answer."""
    logs = json.loads(gzip.decompress((DATA / "logs.json.gz").read_bytes()))
    histories, missing = [], []
    for recorded in json.loads((DATA / "histories.json").read_text(encoding="utf-8")):
        try:
            messages = list(conversation(recorded, logs))
        except (OSError, KeyError, ImportError, PackageNotFoundError) as reason:
            missing.append(f"{recorded['id']}: {reason!r}")
            continue
        questions = [Question(text, split(answer), split(near)) for text, answer, near in recorded["questions"]]
        history = History(recorded["id"], messages, questions, recorded["near_characters"], recorded["goal"])
        for question in questions:
            if not is_answerable(question, messages, history.near_characters):
                missing.append(f"{recorded['id']}: {question.text}")
        usable = [question for question in questions if is_answerable(question, messages, history.near_characters)]
        histories.append(History(history.name, messages, usable, history.near_characters, history.goal))
    return histories, missing


def split(alternatives: str) -> tuple[str, ...]:
    return tuple(alternatives.split("|"))


def conversation(recorded: dict[str, Any], logs: dict[str, str]) -> Iterator[Message]:
    yield {"role": "system", "content": "You are an agent that works with tools. Quote figures exactly."}
    yield {"role": "user", "content": recorded["goal"]}
    for number, step in enumerate(recorded["steps"]):
        call_id = f"call_{number}"
        function = {"name": step["tool"], "arguments": json.dumps(step["arguments"])}
        yield {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        }
        yield {"role": "tool", "tool_call_id": call_id, "content": tool_result(step, logs)}
    yield {"role": "assistant", "content": "I have read everything I need."}


def tool_result(step: dict[str, Any], logs: dict[str, str]) -> str:
    """What a tool would have returned."""
    kind, source = step["kind"], step["source"]
    if kind == "readme":
        return str(metadata(source).json["description"])
    if kind == "log":
        return "\n".join(logs[source].split("\n")[step.get("start", 0) : step.get("end")])
    if kind == "html":
        module = importlib.import_module(source)
        return str(pydoc.html.page(source, pydoc.html.document(module)))
    if kind == "text":
        return Path(SITE, source).read_text(encoding="utf-8")
    raw = Path(SITE, source).read_bytes()
    data = json.loads(gzip.decompress(raw) if kind == "json_gz" else raw)
    return truncated_json(json.dumps({key: data[key] for key in step["keys"]}, indent=2), data, step)


def truncated_json(text: str, data: dict[str, Any], step: dict[str, Any]) -> str:
    """The first records of a mapping that is too long for one result, as complete JSON."""
    if "limit" not in step or len(text) <= step["limit"]:
        return text
    (key,) = step["keys"]
    kept_fields: dict[str, Any] = {}
    size = 0
    for name, value in data[key].items():
        size += len(json.dumps(value, indent=2))
        if size > step["limit"]:
            break
        kept_fields[name] = value
    return json.dumps({key: kept_fields}, indent=2)


# Measuring


def is_answerable(question: Question, messages: Sequence[Message], near_characters: int) -> bool:
    return any(
        holds_answer(question, message["content"], near_characters) for message in messages if message["role"] == "tool"
    )


def holds_answer(question: Question, text: str, near_characters: int) -> bool:
    return any(
        is_near(answer, question.near, normalized_spaces(text), near_characters)
        for answer in map(normalized_spaces, question.answers)
    )


def normalized_spaces(text: str) -> str:
    return " ".join(text.replace("&nbsp;", " ").split())


def is_near(answer: str, near: Sequence[str], text: str, characters: int) -> bool:
    """`answer`, not as a part of a longer word or number, with one of `near` at most so many characters away."""
    before = r"(?<![A-Za-z0-9])" if answer[:1].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if answer[-1:].isalnum() else ""
    for match in re.finditer(before + re.escape(answer) + after, text):
        around = text[max(0, match.start() - characters) : match.end() + characters]
        if any(normalized_spaces(word) in around for word in near):
            return True
    return False


def evaluate_row(row: Row, histories: Sequence[History], count: CountTokens) -> tuple[Row, Tally, Tally, Tally]:
    asked, unasked, goal = Tally(), Tally(), Tally()
    for history in histories:
        for question in history.questions:
            after = compressed(row, history.asked(question.text), count, asked)
            record_question(question, after, history, asked)
        for tally, instruction in ((unasked, UNASKED), (goal, history.goal)):
            after = compressed(row, history.asked(instruction), count, tally)
            for question in history.questions:
                record_question(question, after, history, tally)
    return row, asked, unasked, goal


def compressed(row: Row, messages: list[Message], count: CountTokens, tally: Tally) -> list[Message]:
    before = sum(count(message["content"] or "") for message in messages)
    target = None if row.fit_share is None else int(row.fit_share * before)
    started = time.perf_counter()
    result = compress_chat(messages, row.policy, count, target_tokens=target, intent="extract")
    tally.seconds.append(time.perf_counter() - started)
    tally.before += result.tokens_before
    tally.after += result.tokens_after
    tally.qualities.append(result.quality)
    for stage, tokens in (action.split("=") for action in result.actions):
        tally.stages[stage] += int(tokens)
    return result.messages or messages


def record_question(question: Question, messages: Sequence[Message], history: History, tally: Tally) -> None:
    answerable = is_answerable(question, messages, history.near_characters)
    tally.asked += 1
    tally.kept += answerable
    if not answerable:
        tally.lost.append(f"{history.name}: {question.text}")


# Reporting


def describe(histories: Sequence[History], missing: Sequence[str], count: CountTokens) -> None:
    tokens = {
        history.name: sum(count(message["content"] or "") for message in history.messages) for history in histories
    }
    questions = sum(len(history.questions) for history in histories)
    print(f"{len(histories)} histories, {sum(tokens.values()):,} tokens ({ENCODING}), {questions} questions")
    for lack in missing:
        print(f"  not on this machine: {lack}")


def print_rows(report: Sequence[tuple[Row, Tally, Tally, Tally]], with_lost: bool) -> None:
    heads = " | ".join(f"saved, {name} | answers kept" for name in ("asked", "unasked", "goal"))
    print(f"\n| policy | {heads} | quality | ms/chat |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row, asked, unasked, goal in report:
        cells = [cell for tally in (asked, unasked, goal) for cell in (tally.saved, tally.answerable)]
        shares = " | ".join(f"{cell:.1%}" for cell in cells)
        milliseconds = statistics.mean(asked.seconds) * 1000
        print(f"| {row.label} | {shares} | {statistics.mean(asked.qualities):.3f} | {milliseconds:.1f} |")
        for lost in asked.lost if with_lost else ():
            print(f"    lost: {lost}")


def figures(row: Row, asked: Tally, unasked: Tally, goal: Tally) -> dict[str, Any]:
    return {
        "policy": row.label,
        "saved_asked": round(asked.saved, 4),
        "answerable_asked": round(asked.answerable, 4),
        "saved_unasked": round(unasked.saved, 4),
        "answerable_unasked": round(unasked.answerable, 4),
        "saved_goal": round(goal.saved, 4),
        "answerable_goal": round(goal.answerable, 4),
        "quality": round(statistics.mean(asked.qualities), 4),
    }


def print_by_history(histories: Sequence[History], count: CountTokens) -> None:
    rows = (Row(Strategy.STRUCTURAL), Row(Strategy.EXTRACTIVE))
    print("\n| history | tokens | structural saved, kept | of which repetition | extractive saved, kept |")
    print("|---|---|---|---|---|")
    for history in histories:
        cells = []
        for row in rows:
            _, asked, *_ = evaluate_row(row, [history], count)
            cells.append(f"{asked.saved:.1%}, {asked.answerable:.1%}")
            if row.strategy is Strategy.STRUCTURAL:
                cells.append(f"{asked.stages['duplicates'] / asked.before:.1%}")
        tokens = sum(count(message["content"] or "") for message in history.messages)
        print(f"| {history.name} | {tokens:,} | {' | '.join(cells)} |")


def speed(histories: Sequence[History], count: CountTokens) -> None:
    """Structural alone, and whole chats with all token counts cached, as for a history that was counted before."""
    texts = [message["content"] for history in histories for message in history.messages if message["role"] == "tool"]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"\nspeed over {megabytes:.2f} MB of tool results, CPU time, best of 5:")
    for aggressiveness in Aggressiveness:
        seconds = fastest(partial(compress_structural, texts, aggressiveness))
        print(f"  structural {aggressiveness}: {megabytes / seconds:.1f} MB/s")
    known: dict[str, int] = {}

    def remembered(text: str) -> int:
        if text not in known:
            known[text] = count(text)
        return known[text]

    chats = [history.asked(history.questions[0].text) for history in histories]
    for strategy in (Strategy.STRUCTURAL, Strategy.TEMPLATE, Strategy.TRUNCATE, Strategy.EXTRACTIVE):
        seconds = fastest(partial(compress_all, chats, Row(strategy).policy, remembered))
        print(f"  whole chats, {strategy}: {megabytes / seconds:.1f} MB/s, {seconds / len(chats) * 1000:.1f} ms a chat")


def compress_structural(texts: Sequence[str], aggressiveness: Aggressiveness) -> None:
    for text in texts:
        compress_structure(text, aggressiveness)


def compress_all(chats: Sequence[list[Message]], policy: CompressionPolicy, count: CountTokens) -> None:
    for chat in chats:
        compress_chat(chat, policy, count)


def fastest(work: Callable[[], object]) -> float:
    """CPU time, so that other work on the machine does not count."""

    def once() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return min(once() for _ in range(5))


# A step of one turn: how its data is given, and the tasks about all of it.
FRAMES = {
    "JSON as it is": "{ask}\n\n{data}",
    "JSON in a fence": "{ask}\n\n```json\n{data}\n```\nAnswer in one line.",
    "other texts in a tag": "<document>\n{data}\n</document>\n\n{ask}",
    "other texts as they are": "{ask}\n\n{data}",
}
WHOLE_TASKS = ("Summarize this in two sentences.", "Translate it to French.", "Count the entries.", "List all names.")


def report_one_turn(histories: Sequence[History], count: CountTokens) -> None:
    """A system prompt and one user turn: a question, or a task about the whole text, and the tool result that answers it."""
    print("\n| a step of one turn | prompts | tokens | saved | answers kept | saying something else |")
    print("|---|---|---|---|---|---|")
    for name, frame in FRAMES.items():
        tally, changed = Tally(), 0
        for history in histories:
            for ask, data, question in one_turn_prompts(history, as_json=name.startswith("JSON")):
                prompt = frame.format(ask=ask, data=data)
                messages = [history.messages[0], {"role": "user", "content": prompt}]
                after = compressed(Row(Strategy.EXTRACTIVE), messages, count, tally)[1]["content"]
                changed += not is_equivalent(prompt, after, ask)
                if question is not None:
                    tally.asked += 1
                    tally.kept += holds_answer(question, after, history.near_characters)
        print(
            f"| {name} | {len(tally.seconds)} | {tally.before:,} | {tally.saved:.1%} | {tally.answerable:.1%} | {changed} |"
        )


def is_equivalent(before: str, after: str, ask: str) -> bool:
    """Compares every word of the question, every JSON value, and every letter or every distinct line of other texts."""
    if ask not in after:
        return False
    starts = [re.search(r"(?m)^[\[{]", text) for text in (before, after)]
    if looks_like_json(before[starts[0].start() :].split("\n```")[0] if starts[0] else ""):
        values: list[object] = [
            json.loads(text[start.start() :].split("\n```")[0])
            for text, start in zip((before, after), starts, strict=True)
            if start
        ]
        return values[0] == values[-1]
    if "".join(before.split()) == "".join(after.split()):
        return True
    return {" ".join(line.split()) for line in before.splitlines()} <= {
        " ".join(line.split()) for line in after.splitlines()
    }


def one_turn_prompts(history: History, *, as_json: bool) -> Iterator[tuple[str, str, Question | None]]:
    texts = [message["content"] for message in history.messages if message["role"] == "tool"]
    texts = [text for text in texts if looks_like_json(text) is as_json]
    for question in history.questions:
        holding = (text for text in texts if holds_answer(question, text, history.near_characters))
        yield from ((question.text, text, question) for text in list(holding)[:1])
    for text in texts:
        yield from ((task, text, None) for task in WHOLE_TASKS)


def prompts(count: CountTokens) -> None:
    """Prompts of real workflows, as an older turn; in the newest turn, only marked data is touched."""
    reference = Path(os.environ.get("FAREBOX_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))
    source = reference / "intents" / "dev.jsonl"
    if not source.exists():
        print("\nprompts of real workflows: skipped, the reference data (intents/dev.jsonl) is not here")
        return
    steps = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for strategy in (Strategy.STRUCTURAL, Strategy.TEMPLATE):
        tally = Tally()
        for step in steps:
            chat = [{"role": "user", "content": step["prompt"]}, {"role": "user", "content": "Go on."}]
            chat.insert(1, {"role": "assistant", "content": "Done."})
            result = compress_chat(chat, Row(strategy).policy, count, intent=step["label"])
            tally.before += result.tokens_before
            tally.after += result.tokens_after
            tally.qualities.append(result.quality)
        print(
            f"\n{len(steps)} prompts of real workflows, {strategy}: {tally.saved:.1%} of {tally.before:,} tokens saved, ",
            end="",
        )
        print(f"quality {statistics.mean(tally.qualities):.3f}", end="")
    print()


if __name__ == "__main__":
    main()
