"""The words that indicate an intent, loaded once from `lexicon.json`.

A verb may point to several intents; a star marks those for which it is unambiguous ("translate", but not "check").
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from policies.values import value_class

Meaning = tuple[str, bool]
"""The name of an intent, and whether the word is unambiguous for it."""


@value_class
class Grammar:
    """Words without a meaning of their own that show where the meaningful ones are."""

    fillers: frozenset[str]
    """Words that may precede the verb of an imperative."""
    task_nouns: frozenset[str]
    modals: frozenset[str]
    expertise: frozenset[str]
    """A verb after one of these and one of `expertise_links` says what the model is for: "tasked with", "expert at"."""
    expertise_links: frozenset[str]
    preambles: frozenset[str]
    """Words that begin a clause whose verb comes after a comma: "given", "based"."""
    carriers: frozenset[str]
    """Empty verbs that point to the next one: "use … to", "take … and"."""
    noun_verbs: frozenset[str]
    """Verbs that are equally often nouns: "answer", "review"."""
    after_nouns: frozenset[str]
    """A word before one of these is a noun: "answers should", "score of"."""
    copulas: frozenset[str]
    """ "Your task is", "tu tarea es"."""
    judged_nouns: frozenset[str]
    """Outputs of other steps, about which "determine whether" asks for a judgement."""
    vague_objects: frozenset[str]
    """Products that merely contain the real one: "a list of"."""
    negations: frozenset[str]
    articles: frozenset[str]
    question_words: frozenset[str]
    role_openers: frozenset[str]
    name_noise: frozenset[str]
    instruction_tags: frozenset[str]
    """XML tags around an instruction, not around data."""
    intent_forms: frozenset[str]
    """The ten intents and their nouns, with which a text could claim its own classification."""
    label_words: frozenset[str]
    stances: frozenset[str]
    pronouns: frozenset[str]
    own_nouns: frozenset[str]
    """Nouns with which a text refers to itself: request, prompt, call."""
    links: frozenset[str]
    claim_leads: frozenset[str]
    """Words that introduce a claim: "when you choose the correct"."""
    overrides: frozenset[str]
    rule_words: frozenset[str]


@value_class
class Lexicon:
    """Lookups by word. `forms` maps inflected verbs to their base form."""

    verbs: dict[str, tuple[Meaning, ...]]
    forms: dict[str, str]
    phrases: dict[tuple[str, ...], str]
    nominals: dict[str, str]
    agents: dict[str, str]
    objects: dict[str, str]
    light_verbs: frozenset[str]
    assigned: dict[str, str]
    """What "assign" means for the intent of its object: "assign a score" is to score."""
    tools: dict[str, str]
    keys: dict[str, tuple[str, ...]]
    generic_names: frozenset[str]
    cues: dict[str, dict[str, list[tuple[tuple[str, ...], str]]]]
    """By first word, then by second ("" for a cue of one word): the remaining words, and the cue's name."""
    cjk: tuple[tuple[str, str], ...]
    grammar: Grammar


@cache
def lexicon() -> Lexicon:
    """Load the shipped words. About 5 ms, once per process."""
    data = json.loads(files("policies.classify").joinpath("lexicon.json").read_text("utf-8"))
    verbs = _verbs(data)
    return Lexicon(
        verbs=verbs,
        forms=_forms(verbs),
        phrases={tuple(words.split()): verb for words, verb in data["phrases"].items()},
        nominals=_by_word(data["nominals"]),
        agents=_by_word(data["agents"]),
        objects=_by_word(data["objects"]),
        light_verbs=frozenset(data["light"].split()),
        assigned=data["assigned"],
        tools=_by_word(data["tools"]),
        keys=_keys(data["keys"]),
        generic_names=frozenset(data["generic_names"].split()),
        cues=_cues(data["cues"]),
        cjk=tuple((word, intent) for intent, words in data["cjk"].items() for word in words.split()),
        grammar=Grammar(**{name: frozenset(words.split()) for name, words in data["grammar"].items()}),
    )


def _by_word(groups: dict[str, str]) -> dict[str, str]:
    intent_by_word: dict[str, str] = {}
    for intent, words in groups.items():
        for word in words.split():
            intent_by_word.setdefault(word, intent)
    return intent_by_word


def _verbs(data: dict[str, Any]) -> dict[str, tuple[Meaning, ...]]:
    meanings_by_verb: dict[str, list[Meaning]] = {}
    for intent, words in data["verbs"].items():
        for word in words.split():
            meanings_by_verb.setdefault(word.rstrip("*"), []).append((intent, word.endswith("*")))
    for intent, words in data["foreign"].items():
        for word in words.split():
            meanings_by_verb.setdefault(word, [(intent, True)])
    return {verb: tuple(meanings) for verb, meanings in meanings_by_verb.items()}


def _forms(verbs: dict[str, tuple[Meaning, ...]]) -> dict[str, str]:
    """Third person, gerund and past of each verb; base forms take precedence over inflected forms of other verbs."""
    forms: dict[str, str] = {}
    for verb in verbs:
        for form in _inflected(verb):
            forms.setdefault(form, verb)
    return forms | {verb: verb for verb in verbs}


def _inflected(verb: str) -> tuple[str, ...]:
    if verb.endswith("e"):
        return (verb + "s", verb + "d", verb[:-1] + "ing")
    if verb.endswith("y") and len(verb) > 2 and verb[-2] not in "aeiou":
        return (verb[:-1] + "ies", verb[:-1] + "ied", verb + "ing")
    doubled = verb + verb[-1]
    return (verb + "s", verb + "es", verb + "ed", verb + "ing", doubled + "ing", doubled + "ed")


def _keys(groups: dict[str, str]) -> dict[str, tuple[str, ...]]:
    intents_by_key: dict[str, list[str]] = {}
    for intent, words in groups.items():
        for word in words.split():
            intents_by_key.setdefault(word, []).append(intent)
    return {key: tuple(intents) for key, intents in intents_by_key.items()}


def _cues(groups: dict[str, list[str]]) -> dict[str, dict[str, list[tuple[tuple[str, ...], str]]]]:
    cues: dict[str, dict[str, list[tuple[tuple[str, ...], str]]]] = {}
    for name, phrases in groups.items():
        for phrase in phrases:
            first, second, *remaining_words = [*phrase.replace("_", " ").split(), ""]
            ending = tuple(word for word in remaining_words if word)
            cues.setdefault(first, {}).setdefault(second, []).append((ending, name))
    return cues
