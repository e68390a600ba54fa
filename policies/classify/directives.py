"""The directives in a text: the verbs of its imperatives and of phrases like "your task is to …", with their objects."""

from __future__ import annotations

from collections.abc import Sequence

from policies.classify.lexicon import Lexicon, Meaning
from policies.values import value_class

DIRECTIVES_MAX = 24
_OBJECT_REACH = 8


@value_class
class Directive:
    """One instruction. `via` is imperative, task (stated outright), expertise ("you excel at …") or aside (after a comma)."""

    verb: str
    meanings: tuple[Meaning, ...]
    produces: str | None
    object_word: str | None
    via: str


def find_directives(clauses: Sequence[Sequence[str]], words: Lexicon) -> list[Directive]:
    """At most `DIRECTIVES_MAX` directives of these clauses, in reading order."""
    directives: list[Directive] = []
    for clause in clauses:
        directives.extend(_directives_of_clause(clause, words))
        if len(directives) >= DIRECTIVES_MAX:
            break
    return directives[:DIRECTIVES_MAX]


def _directives_of_clause(clause: Sequence[str], words: Lexicon) -> list[Directive]:
    head = 0
    while (
        head < len(clause)
        and head < 8
        and (clause[head] in words.grammar.fillers or clause[head] == "," or clause[head].isdigit())
    ):
        head += 1
    if (
        head >= len(clause)
        or clause[head] in words.grammar.negations
        or (clause[head] == "do" and clause[head + 1 : head + 2] == ["not"])
    ):
        return []
    if _is_noun(clause, head, words):
        return []
    imperative = parse_directive(clause, head, "imperative", words)
    if imperative is not None:
        return [imperative, *_second_directive(clause, head, words)]
    aside = _aside_directive(clause, words) if clause[head] in words.grammar.preambles or "please" in clause else []
    return aside or _stated_directives(clause, words)


def _is_noun(clause: Sequence[str], index: int, words: Lexicon) -> bool:
    """Whether a word that could be a verb is a noun: the labels "Answer:" and "Reviews:", "answers should be short"."""
    word = clause[index]
    if word not in words.grammar.noun_verbs and word.removesuffix("s") not in words.grammar.noun_verbs:
        return False
    return index + 1 == len(clause) or clause[index + 1] in words.grammar.after_nouns


def _second_directive(clause: Sequence[str], head: int, words: Lexicon) -> list[Directive]:
    """ "Fetch my last mail and summarize it": the verb after the first "and" counts as well."""
    for index in range(head + 1, min(len(clause) - 1, head + 16)):
        if clause[index] in ("and", "then", "und", "et", "y"):
            directive = parse_directive(
                clause, index + 1 + (clause[index + 1] in words.grammar.fillers), "second", words
            )
            if directive is not None:
                return [directive]
    return []


def _stated_directives(clause: Sequence[str], words: Lexicon) -> list[Directive]:
    directives: list[Directive] = []
    for index, word in enumerate(clause[:40]):
        start, via = _verb_after(clause, index, word, words)
        if start is None:
            continue
        directive = parse_directive(
            clause, start + (start < len(clause) and clause[start] in words.grammar.fillers), via, words
        )
        if directive is not None:
            directives.append(directive)
        if len(directives) == 3:
            break
    return directives


def _verb_after(clause: Sequence[str], index: int, word: str, words: Lexicon) -> tuple[int | None, str]:
    """The position where a verb may follow this word, and how explicit the directive is."""
    following = clause[index + 1 : index + 6]
    if word in words.grammar.task_nouns and "to" in following:
        return index + 2 + following.index("to"), "task"
    if word in words.grammar.task_nouns and following[:1] and following[0] in words.grammar.copulas:
        has_link = following[1:2] in (["de"], ["en"], ["of"])  # "votre tâche est de résumer"
        return index + (3 if has_link else 2), "task"
    if word in words.grammar.expertise:
        for step, link in enumerate(following[:3]):
            if link in words.grammar.expertise_links:
                return index + 2 + step, "task" if word in (
                    "tasked",
                    "asked",
                    "instructed",
                    "assigned",
                ) else "expertise"
    if word == "you" and following and following[0] in words.grammar.modals:
        skip = 1 + (following[1:2] == ["to"]) + (following[1:2] in (["also"], ["then"], ["now"], ["first"]))
        return index + 1 + skip, "task" if following[0] != "can" else "expertise"
    if (
        word in ("need", "want", "like")
        and "to" in following[:2]
        and {"i", "we"} & set(clause[max(0, index - 2) : index])
    ):
        return index + 2 + following.index("to"), "task"
    if word == "you" and following:
        return index + 1, "expertise"
    if word in ("who", "that") and clause[0] in ("you", "act", "as", "this"):
        return index + 1, "expertise"
    if word == "help" and following[:1] in (["me"], ["us"]):
        return index + 2, "task"
    return None, ""


def _aside_directive(clause: Sequence[str], words: Lexicon) -> list[Directive]:
    """ "Given the notes, write …": the verb after a comma or a "please", or "Given the notes verify if …"."""
    for index, word in enumerate(clause[:60]):
        start = index + 1
        if word in (",", "please"):
            while start < len(clause) and clause[start] in words.grammar.fillers:
                start += 1
        elif clause[start + 1 : start + 2] not in (["if"], ["whether"]):
            continue
        if not _is_list_item(clause, start, words):
            directive = parse_directive(clause, start, "aside", words)
            if directive is not None:
                return [directive]
    return []


def parse_directive(clause: Sequence[str], index: int, via: str, words: Lexicon) -> Directive | None:
    """The directive whose verb is at this word; None if there is no known verb."""
    if index >= len(clause):
        return None
    verb, ends = _verb_at(clause, index, words)
    if verb is None:
        return _carried_directive(clause, index, via, words)
    produces, object_word = _object_after(clause, ends, words)
    verb = _verb_with_object(verb, produces, clause[ends : ends + _OBJECT_REACH], words)
    return Directive(verb, words.verbs.get(verb, ()), produces, object_word, via)


def _verb_with_object(verb: str, produces: str | None, following: Sequence[str], words: Lexicon) -> str:
    """ "Assign a score" asks to score; "determine whether the answer is right" asks to check an output, not to choose a way."""
    if verb == "assign":
        return words.assigned.get(produces or "", verb)
    if verb == "decide_if" and not words.grammar.judged_nouns.isdisjoint(following):
        return "check_if"
    return verb


def _carried_directive(clause: Sequence[str], index: int, via: str, words: Lexicon) -> Directive | None:
    """ "Use the tools to gather facts" asks to gather; "take both drafts and merge them" asks to merge."""
    if clause[index] not in words.grammar.carriers:
        return None
    for step in range(index + 1, min(len(clause) - 1, index + 24)):
        if clause[step] in ("to", "and", "then") and words.forms.get(clause[step + 1]) is not None:
            return parse_directive(clause, step + 1, via, words)
    return None


def _is_list_item(clause: Sequence[str], index: int, words: Lexicon) -> bool:
    """Whether a word that could be a verb is an item of a list: "given question, answer and context"."""
    return (
        index < len(clause)
        and clause[index] in words.grammar.noun_verbs
        and clause[index + 1 : index + 2] in (["and"], [","], ["or"], ["from"], [])
    )


def _verb_at(clause: Sequence[str], index: int, words: Lexicon) -> tuple[str | None, int]:
    for length in (3, 2):
        phrase = words.phrases.get(tuple(clause[index : index + length]))
        if phrase is not None:
            return phrase, index + length
    form = clause[index]
    base = words.forms.get(form)
    if base is None or form in words.grammar.negations:
        return None, index
    if base == "fasse" and "zusammen" in clause:
        base = "summarize"
    return base, index + 1


def _object_after(clause: Sequence[str], index: int, words: Lexicon) -> tuple[str | None, str | None]:
    """The first known product after a verb: the name of its intent, and the first noun-like word."""
    first: str | None = None
    vague: str | None = None
    for word in clause[index : index + _OBJECT_REACH]:
        if word in words.grammar.articles or word == ",":
            continue
        first = first or word
        produced = words.objects.get(word)
        if produced is not None and word in words.grammar.vague_objects:
            vague = vague or produced  # "a list of errors" is about the errors
        elif produced is not None:
            return produced, first
        elif vague is not None and word == "of":
            continue
        if word in ("of", "about", "from", "that", "which", "for", "to", "based") and first != word:
            break
    return vague, first
