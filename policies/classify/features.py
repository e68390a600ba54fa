"""The evidence in a step: named numbers as features of the model, and hints for the rules and for human readers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from policies.classify.clauses import split_clauses, without_claims
from policies.classify.directives import Directive, find_directives
from policies.classify.instruction import clip, instruction_part
from policies.classify.lexicon import Lexicon, lexicon
from policies.classify.schema import schema_features
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
    reason: str


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
class _EvidenceCollector:
    features: dict[str, float]
    hints: list[Hint]

    def raise_to(self, name: str, value: float) -> None:
        if value > self.features.get(name, 0.0):
            self.features[name] = value

    def add(self, name: str, value: float, limit: float = 3.0) -> None:
        self.features[name] = min(limit, self.features.get(name, 0.0) + value)

    def add_hint(self, kind: str, intent: str, strong: bool, reason: str) -> None:
        self.hints.append(Hint(kind, intent, strong, reason))


def evidence_of(step: StepText) -> Evidence:
    """Read a step. Bounded work: the clips of `instruction`, and the limits of `clauses` and `directives`."""
    words = lexicon()
    evidence = _EvidenceCollector({}, [])
    system = split_clauses(instruction_part(step.system)) if step.system else []
    prompt = split_clauses(instruction_part(step.prompt)) if step.prompt else []
    _read_name(step.step, words, evidence)
    system_directives = find_directives(system, words)
    if _states_task(system_directives):
        prompt = []  # then the user message is only the input of the task
    prompt_directives = find_directives(prompt, words)
    from_prompt = not system or _has_direct_request(prompt_directives)
    _read_directives(
        prompt_directives + system_directives if from_prompt else system_directives + prompt_directives, evidence
    )
    _read_role([*system[:4], *prompt[:4]], words, evidence)
    _read_products([*system, *prompt], words, evidence)
    _read_cues([word for clause in [*system, *prompt] for word in clause], words, evidence)
    _read_tools(step.tools, words, evidence)
    for name, value in schema_features(step.response_format, words).items():
        evidence.raise_to(name, value)
    _read_cjk(step, words, evidence)
    _read_form(step, system, prompt, evidence)
    primary = prompt if from_prompt else system
    _read_ngrams([word for clause in primary[:12] for word in clause], evidence)
    return Evidence(evidence.features, tuple(evidence.hints))


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


def _read_name(name: str | None, words: Lexicon, evidence: _EvidenceCollector) -> None:
    if is_generic_name(name):
        evidence.raise_to("~name_generic", 1.0)
        return
    tokens = without_claims(
        [
            word
            for word in name_words(name)
            if word not in words.generic_names and word not in ("prompt", "task", "agent", "step")
        ]
    )
    if tokens and tokens[0] in words.grammar.question_words and len(tokens) > 1:
        evidence.raise_to("n1q", 1.0)
    for index, token in enumerate(tokens[:8]):
        evidence.raise_to(f"nt={token}", 1.0)
        if index == 0:
            _read_first_of_name(token, tokens[-1], words, evidence)
        else:
            for intent, strong in words.verbs.get(words.forms.get(token, ""), ()):
                evidence.raise_to(f"n:{intent}", 1.0 if strong else 0.5)
        _read_noun_of_name(token, index == len(tokens) - 1, index, words, evidence)


def _read_first_of_name(token: str, last: str, words: Lexicon, evidence: _EvidenceCollector) -> None:
    """The first word of a name is its verb, unless the last word makes it a noun: `email_classifier`."""
    base = words.forms.get(token)
    if base is None:
        return
    is_noun = (
        token in words.grammar.noun_verbs and last != token and (last in words.agents or _names_activity(last, words))
    )
    evidence.raise_to(f"n1v={base}", 1.0)
    for intent, strong in words.verbs.get(base, ()):
        evidence.raise_to(f"{'n' if is_noun else 'n1'}:{intent}", 1.0 if strong else 0.5)
        if strong and not is_noun:
            evidence.add_hint("name", intent, True, f"the step's name begins with '{token}'")


def _names_activity(word: str, words: Lexicon) -> bool:
    """Whether a noun names an activity ("extraction") rather than its object ("query")."""
    return word in words.nominals and word not in words.objects


def _read_noun_of_name(token: str, last: bool, index: int, words: Lexicon, evidence: _EvidenceCollector) -> None:
    is_verb = index == 0 and token in words.forms
    for group, table in (("nn", words.nominals), ("na", words.agents), ("no", words.objects)):
        intent = table.get(token)
        if intent is None:
            continue
        evidence.raise_to(f"{group}{'L' if last else ''}:{intent}", 1.0)
        if last and not is_verb and (group == "na" or (group == "nn" and _names_activity(token, words))):
            evidence.add_hint("name", intent, group == "na", f"the step's name ends with '{token}'")


def _has_direct_request(directives: Sequence[Directive]) -> bool:
    return any(directive.via in ("imperative", "task", "aside") for directive in directives)


def _states_task(directives: Sequence[Directive]) -> bool:
    """Whether a system prompt states outright what to do with the user's messages.

    "Answer briefly" is about manners and not a task, so `generate` does not count.
    """
    return any(
        directive.via in ("imperative", "task", "aside")
        and any(strong and intent != "generate" for intent, strong in directive.meanings)
        for directive in directives[:2]
    )


def _read_directives(directives: Sequence[Directive], evidence: _EvidenceCollector) -> None:
    for rank, directive in enumerate(directives):
        weight = 1.0 / (1.0 + 0.4 * rank)
        if rank == 0:
            evidence.raise_to(f"a1v={directive.verb}", 1.0)
        evidence.raise_to(f"av={directive.verb}", weight)
        if directive.produces:
            evidence.add(f"ao:{directive.produces}", weight, 1.5)
            if directive.verb in lexicon().light_verbs:
                evidence.add(f"a{'1' if rank == 0 else ''}lo:{directive.produces}", weight, 1.5)
        for intent, strong in directive.meanings:
            points = weight * (1.0 if strong else 0.5)
            if rank == 0:
                evidence.raise_to(f"a1:{intent}", points)
            if directive.via == "task":
                evidence.raise_to(f"at:{intent}", points)
            evidence.add(f"a:{intent}", points)
        _hint_directive(rank, directive, evidence)


def _hint_directive(rank: int, directive: Directive, evidence: _EvidenceCollector) -> None:
    if rank > 2:
        return
    if directive.produces and directive.verb in lexicon().light_verbs:
        evidence.add_hint(
            "ask" if rank == 0 else "later",
            directive.produces,
            False,
            f"it asks to {directive.verb} something of the kind '{directive.produces}'",
        )
        return
    for intent, strong in directive.meanings:
        if strong:
            kind = "ask" if rank == 0 else "later"
            evidence.add_hint(kind, intent, True, f"it asks to {directive.verb}")


def _read_role(clauses: Iterable[Sequence[str]], words: Lexicon, evidence: _EvidenceCollector) -> None:
    """ "You are a senior code reviewer who …": the last agent noun of the first part of the clause."""
    for clause in clauses:
        for index, word in enumerate(clause[:6]):
            if (
                word in words.grammar.role_openers
                and index + 1 < len(clause)
                and (index == 0 or clause[index - 1] in ("you", "act", "acting", "role", "i"))
            ):
                agent = _agent_noun(clause[index + 1 : index + 14], words)
                if agent is not None:
                    intent = words.agents[agent]
                    evidence.raise_to(f"g:{intent}", 1.0)
                    evidence.raise_to(f"gv={agent}", 1.0)
                    evidence.add_hint("role", intent, intent not in ("generate", "enrich"), f"it speaks to a {agent}")
                    return


def _agent_noun(clause: Sequence[str], words: Lexicon) -> str | None:
    noun: str | None = None
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
            noun = word
    return noun


def _read_products(clauses: Sequence[Sequence[str]], words: Lexicon, evidence: _EvidenceCollector) -> None:
    """What the output is said to be: "Expected output: …", "return …", "output only …"."""
    expected = False
    for clause in clauses:
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
            object_nouns = [word for word in clause[:10] if word in words.objects]
            specific = [word for word in object_nouns if word not in words.grammar.vague_objects] or object_nouns
            if specific:
                produced = words.objects[specific[0]]
                evidence.raise_to(f"{group}:{produced}", 1.0)
                if expected:
                    evidence.add_hint("product", produced, False, f"the expected output is of the kind '{produced}'")
        expected = False


def _read_cues(tokens: Sequence[str], words: Lexicon, evidence: _EvidenceCollector) -> None:
    cues = words.cues
    for index, (word, following) in enumerate(pairwise([*tokens, ""])):
        by_second = cues.get(word)
        if by_second is None:
            continue
        for ending, name in chain(by_second.get("", ()), by_second.get(following, ()) if following else ()):
            if not ending or tuple(tokens[index + 2 : index + 2 + len(ending)]) == ending:
                evidence.add(f"q:{name}", 1.0)
                if index < 60:
                    evidence.raise_to(f"qh:{name}", 1.0)


def _read_tools(tools: Sequence[str], words: Lexicon, evidence: _EvidenceCollector) -> None:
    for tool in tools[:40]:
        tokens = name_words(tool)
        for index, token in enumerate(tokens[:6]):
            intent = words.tools.get(token)
            if intent is not None:
                evidence.raise_to(f"k:{intent}", 1.0 if index == 0 else 0.6)
                if index == 0:
                    break
    if len(tools) == 1:
        for name, value in list(evidence.features.items()):
            if name.startswith("k:") and value == 1.0:
                evidence.add_hint("tool", name[2:], False, "its only tool is of that kind")
    if tools:
        evidence.raise_to("~tools", 1.0)


def _read_cjk(step: StepText, words: Lexicon, evidence: _EvidenceCollector) -> None:
    text = clip(step.system or "")[:400] + clip(step.prompt)[:400] + (step.step or "")[:NAME_CHARS]
    if text.isascii():
        return
    occurrences = [(text.find(word), word, intent) for word, intent in words.cjk]
    for rank, (_, word, intent) in enumerate(
        sorted(occurrence for occurrence in occurrences if occurrence[0] >= 0)[:4]
    ):
        evidence.add(f"a:{intent}", 1.0 / (1 + rank))
        if rank == 0:
            evidence.raise_to(f"a1:{intent}", 1.0)
            evidence.add_hint("ask", intent, True, f"it asks for {word}")


def _read_form(
    step: StepText, system: Sequence[Sequence[str]], prompt: Sequence[Sequence[str]], evidence: _EvidenceCollector
) -> None:
    raw = (step.system or "")[:4000] + step.prompt[:4000]
    if _LOOP.search(raw):
        evidence.raise_to("f:loop", 1.0)
    if prompt and prompt[0][0] in lexicon().grammar.question_words and not system:
        evidence.raise_to("f:question", 1.0)
        evidence.raise_to(f"f:question={prompt[0][0]}", 1.0)
    size = sum(map(len, system)) + sum(map(len, prompt))
    evidence.raise_to("~empty" if size == 0 else "~short" if size < 15 else "~medium" if size < 80 else "~long", 1.0)
    if system:
        evidence.raise_to("~system", 1.0)


def _read_ngrams(tokens: Sequence[str], evidence: _EvidenceCollector) -> None:
    words_only = [token for token in tokens[:NGRAM_WORDS] if token not in (",", ":")]
    for index, token in enumerate(words_only):
        evidence.raise_to(f"w={token}", 0.5)
        if index:
            evidence.raise_to(f"w={words_only[index - 1]} {token}", 0.5)
