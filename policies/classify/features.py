"""The evidence in a step: named numbers as features of the model, and hints for the rules and for human readers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from policies.classify.asks import Ask, asks_in
from policies.classify.instruction import instruction_part, window
from policies.classify.lexicon import Lexicon, lexicon
from policies.classify.schema import schema_features
from policies.classify.sentences import clauses, without_claims
from policies.classify.step import StepText
from policies.values import value_class

NAME_CHARS = 120
NGRAM_WORDS = 40
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NAME_WORD = re.compile(r"[^\W\d_]+")
_LOOP = re.compile(
    r"\{%-?\s{0,3}for\s|\{\{#(?:each|for)|\binputs\[|\binputs\b\s{0,3}[|}]|\{\{?#?(?:findings|results|summaries|chunks|reports|outputs|responses|documents)\}"
)


@value_class
class Hint:
    """One piece of evidence: where it was found, its intent, and whether it is unambiguous."""

    kind: str
    intent: str
    strong: bool
    said: str


@value_class
class Evidence:
    """All evidence of a step. The model uses `features`; the rules and the reasoning use `hints`."""

    features: Mapping[str, float]
    hints: tuple[Hint, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is no evidence for any intent: no known verb, product, cue, tool or key."""
        return not any(not name.startswith(("w=", "nt=", "~")) for name in self.features)


@dataclass(slots=True)
class _Collector:
    features: dict[str, float]
    hints: list[Hint]

    def most(self, name: str, value: float) -> None:
        if value > self.features.get(name, 0.0):
            self.features[name] = value

    def add(self, name: str, value: float, limit: float = 3.0) -> None:
        self.features[name] = min(limit, self.features.get(name, 0.0) + value)

    def hint(self, kind: str, intent: str, strong: bool, said: str) -> None:
        self.hints.append(Hint(kind, intent, strong, said))


def evidence_of(step: StepText) -> Evidence:
    """Read a step. Bounded work: the windows of `instruction`, and the clause and ask limits of `sentences` and `asks`."""
    words = lexicon()
    seen = _Collector({}, [])
    system = clauses(instruction_part(step.system)) if step.system else []
    prompt = clauses(instruction_part(step.prompt)) if step.prompt else []
    _read_name(step.step, words, seen)
    system_asks = asks_in(system, words)
    if _instructs(system_asks):
        prompt = []  # then the user message is only the input of the task
    prompt_asks = asks_in(prompt, words)
    _read_asks("s", system_asks, seen)
    _read_asks("u", prompt_asks, seen)
    from_prompt = not system or _asks_itself(prompt_asks)
    _read_asks("a", prompt_asks + system_asks if from_prompt else system_asks + prompt_asks, seen)
    _read_role([*system[:4], *prompt[:4]], words, seen)
    _read_products([*system, *prompt], words, seen)
    _read_cues([word for clause in [*system, *prompt] for word in clause], words, seen)
    _read_tools(step.tools, words, seen)
    for name, value in schema_features(step.response_format, words).items():
        seen.most(name, value)
    _read_cjk(step, words, seen)
    _read_form(step, system, prompt, seen)
    primary = prompt if from_prompt else system
    _read_ngrams([word for clause in primary[:12] for word in clause], seen)
    return Evidence(seen.features, tuple(seen.hints))


def name_words(name: str | None) -> list[str]:
    """The words of a step's name in lower case; `reviewPR`, `review-pr` and `Review PR` give the same words."""
    if not name:
        return []
    spaced = _CAMEL.sub(" ", name[:NAME_CHARS].replace("OpenAI", "openai")).lower()
    return [word for word in _NAME_WORD.findall(spaced) if word]


def is_generic_name(name: str | None) -> bool:
    """Whether a name says nothing about the step: missing, `default`, `task1`, `AI Agent`, `OpenAI`."""
    words = lexicon()
    return all(
        word in words.generic_names or word in words.grammar.name_noise or len(word) == 1 for word in name_words(name)
    )


def _read_name(name: str | None, words: Lexicon, seen: _Collector) -> None:
    if is_generic_name(name):
        seen.most("~name_generic", 1.0)
        return
    tokens = without_claims(
        [
            word
            for word in name_words(name)
            if word not in words.generic_names and word not in ("prompt", "task", "agent", "step")
        ]
    )
    if tokens and tokens[0] in words.grammar.question_words and len(tokens) > 1:
        seen.most("n1q", 1.0)
    for place, token in enumerate(tokens[:8]):
        seen.most(f"nt={token}", 1.0)
        if place == 0:
            _read_first_of_name(token, tokens[-1], words, seen)
        else:
            for intent, strong in words.verbs.get(words.forms.get(token, ""), ()):
                seen.most(f"n:{intent}", 1.0 if strong else 0.5)
        _read_noun_of_name(token, place == len(tokens) - 1, place, words, seen)


def _read_first_of_name(token: str, last: str, words: Lexicon, seen: _Collector) -> None:
    """The first word of a name is its verb, unless the last word makes it a noun: `email_classifier`."""
    base = words.forms.get(token)
    if base is None:
        return
    turned = token in words.grammar.noun_verbs and last != token and (last in words.agents or _is_act(last, words))
    seen.most(f"n1v={base}", 1.0)
    for intent, strong in words.verbs.get(base, ()):
        seen.most(f"{'n' if turned else 'n1'}:{intent}", 1.0 if strong else 0.5)
        if strong and not turned:
            seen.hint("name", intent, True, f"the step's name begins with '{token}'")


def _is_act(word: str, words: Lexicon) -> bool:
    """Whether a noun names an activity ("extraction") rather than its object ("query")."""
    return word in words.nominals and word not in words.objects


def _read_noun_of_name(token: str, last: bool, place: int, words: Lexicon, seen: _Collector) -> None:
    is_verb = place == 0 and token in words.forms
    for group, table in (("nn", words.nominals), ("na", words.agents), ("no", words.objects)):
        named = table.get(token)
        if named is None:
            continue
        seen.most(f"{group}{'L' if last else ''}:{named}", 1.0)
        if last and not is_verb and (group == "na" or (group == "nn" and _is_act(token, words))):
            seen.hint("name", named, group == "na", f"the step's name ends with '{token}'")


def _asks_itself(asks: Sequence[Ask]) -> bool:
    return any(ask.via in ("imperative", "task", "aside") for ask in asks)


def _instructs(asks: Sequence[Ask]) -> bool:
    """Whether a system prompt states outright what to do with the user's messages.

    "Answer briefly" is about manners and not a task, so `generate` does not count.
    """
    return any(
        ask.via in ("imperative", "task", "aside")
        and any(strong and intent != "generate" for intent, strong in ask.meanings)
        for ask in asks[:2]
    )


def _read_asks(channel: str, asks: Sequence[Ask], seen: _Collector) -> None:
    for rank, ask in enumerate(asks):
        weight = 1.0 / (1.0 + 0.4 * rank)
        if rank == 0:
            seen.most(f"{channel}1v={ask.verb}", 1.0)
        seen.most(f"{channel}v={ask.verb}", weight)
        if ask.produces:
            seen.add(f"{channel}o:{ask.produces}", weight, 1.5)
            if ask.verb in lexicon().light:
                seen.add(f"{channel}{'1' if rank == 0 else ''}lo:{ask.produces}", weight, 1.5)
        for intent, strong in ask.meanings:
            points = weight * (1.0 if strong else 0.5)
            if rank == 0:
                seen.most(f"{channel}1:{intent}", points)
            if ask.via == "task":
                seen.most(f"{channel}t:{intent}", points)
            seen.add(f"{channel}:{intent}", points)
        if channel == "a":
            _hint_ask(rank, ask, seen)


def _hint_ask(rank: int, ask: Ask, seen: _Collector) -> None:
    if rank > 2:
        return
    if ask.produces and ask.verb in lexicon().light:
        seen.hint(
            "ask" if rank == 0 else "later",
            ask.produces,
            False,
            f"it asks to {ask.verb} something of the kind '{ask.produces}'",
        )
        return
    for intent, strong in ask.meanings:
        if strong:
            kind = "ask" if rank == 0 else "later"
            seen.hint(kind, intent, True, f"it asks to {ask.verb}")


def _read_role(found: Iterable[Sequence[str]], words: Lexicon, seen: _Collector) -> None:
    """ "You are a senior code reviewer who …": the last agent noun of the first part of the clause."""
    for clause in found:
        for at, word in enumerate(clause[:6]):
            if (
                word in words.grammar.role_openers
                and at + 1 < len(clause)
                and (at == 0 or clause[at - 1] in ("you", "act", "acting", "role", "i"))
            ):
                agent = _agent_noun(clause[at + 1 : at + 14], words)
                if agent is not None:
                    intent = words.agents[agent]
                    seen.most(f"g:{intent}", 1.0)
                    seen.most(f"gv={agent}", 1.0)
                    seen.hint("role", intent, intent not in ("generate", "enrich"), f"it speaks to a {agent}")
                    return


def _agent_noun(clause: Sequence[str], words: Lexicon) -> str | None:
    found: str | None = None
    for word in clause:
        if word in (
            "who",
            "that",
            "tasked",
            "with",
            "specializing",
            "whose",
            ",",
            "for",
            "in",
            "at",
            "working",
            "responsible",
            "and",
            "designed",
        ):
            break
        if word in words.agents:
            found = word
    return found


def _read_products(found: Sequence[Sequence[str]], words: Lexicon, seen: _Collector) -> None:
    """What the output is said to be: "Expected output: …", "return …", "output only …"."""
    expected = False
    for clause in found:
        if (
            clause[-2:] == ["expected", "output"]
            or clause[-2:] == ["output", "format"]
            or clause == ["output"]
            or clause[-2:] == ["final", "answer"]
        ):
            expected = True
            continue
        if expected or clause[:1] in (
            ["return"],
            ["output"],
            ["respond"],
            ["provide"],
            ["reply"],
            ["answer"],
            ["print"],
            ["emit"],
        ):
            group = "eo" if expected else "ro"
            named = [word for word in clause[:10] if word in words.objects]
            telling = [word for word in named if word not in words.grammar.vague_objects] or named
            if telling:
                produced = words.objects[telling[0]]
                seen.most(f"{group}:{produced}", 1.0)
                if expected:
                    seen.hint("product", produced, False, f"the expected output is of the kind '{produced}'")
        expected = False


def _read_cues(tokens: Sequence[str], words: Lexicon, seen: _Collector) -> None:
    cues = words.cues
    for at, (word, following) in enumerate(pairwise([*tokens, ""])):
        by_second = cues.get(word)
        if by_second is None:
            continue
        for ending, name in chain(by_second.get("", ()), by_second.get(following, ()) if following else ()):
            if not ending or tuple(tokens[at + 2 : at + 2 + len(ending)]) == ending:
                seen.add(f"q:{name}", 1.0)
                if at < 60:
                    seen.most(f"qh:{name}", 1.0)


def _read_tools(tools: Sequence[str], words: Lexicon, seen: _Collector) -> None:
    for tool in tools[:40]:
        tokens = name_words(tool)
        for place, token in enumerate(tokens[:6]):
            intent = words.tools.get(token)
            if intent is not None:
                seen.most(f"k:{intent}", 1.0 if place == 0 else 0.6)
                if place == 0:
                    break
    if len(tools) == 1:
        for name, value in list(seen.features.items()):
            if name.startswith("k:") and value == 1.0:
                seen.hint("tool", name[2:], False, "its only tool is of that kind")
    if tools:
        seen.most("~tools", 1.0)


def _read_cjk(step: StepText, words: Lexicon, seen: _Collector) -> None:
    text = window(step.system or "")[:400] + window(step.prompt)[:400] + (step.step or "")[:NAME_CHARS]
    if text.isascii():
        return
    places = [(text.find(word), word, intent) for word, intent in words.cjk]
    for rank, (_, word, intent) in enumerate(sorted(place for place in places if place[0] >= 0)[:4]):
        seen.add(f"a:{intent}", 1.0 / (1 + rank))
        if rank == 0:
            seen.most(f"a1:{intent}", 1.0)
            seen.hint("ask", intent, True, f"it asks for {word}")


def _read_form(
    step: StepText, system: Sequence[Sequence[str]], prompt: Sequence[Sequence[str]], seen: _Collector
) -> None:
    raw = (step.system or "")[:4000] + step.prompt[:4000]
    if _LOOP.search(raw):
        seen.most("f:loop", 1.0)
    if prompt and prompt[0][0] in lexicon().grammar.question_words and not system:
        seen.most("f:question", 1.0)
        seen.most(f"f:question={prompt[0][0]}", 1.0)
    size = sum(map(len, system)) + sum(map(len, prompt))
    seen.most("~empty" if size == 0 else "~short" if size < 15 else "~medium" if size < 80 else "~long", 1.0)
    if system:
        seen.most("~system", 1.0)


def _read_ngrams(tokens: Sequence[str], seen: _Collector) -> None:
    plain = [token for token in tokens[:NGRAM_WORDS] if token not in (",", ":")]
    for at, token in enumerate(plain):
        seen.most(f"w={token}", 0.5)
        if at:
            seen.most(f"w={plain[at - 1]} {token}", 0.5)
