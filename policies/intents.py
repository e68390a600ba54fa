"""The ten intents: what a model call is asked to produce.

The intent is about the product of this one call, not about what the workflow does with it later: a step that only drafts an
e-mail is `generate`, even if it is named `send_followup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from policies.errors import IntentClassificationError


class Intent(StrEnum):
    """The values appear in headers, settings and stored rows, so they never change."""

    EXTRACT = "extract"
    SUMMARIZE = "summarize"
    GENERATE = "generate"
    VALIDATE = "validate"
    SEND = "send"
    TRANSFORM = "transform"
    CONDITIONAL = "conditional"
    AGGREGATE = "aggregate"
    FILTER = "filter"
    ENRICH = "enrich"


DEFINITIONS: Mapping[Intent, str] = MappingProxyType(
    {
        Intent.EXTRACT: "pull fields, entities or passages out of given content, or read data from a source",
        Intent.SUMMARIZE: "condense one or several texts into a shorter one",
        Intent.GENERATE: "make new content: answers, plans, drafts, search queries, code",
        Intent.VALIDATE: "score, grade, verify or review something against criteria",
        Intent.SEND: "deliver, post, save, book or write something to a destination",
        Intent.TRANSFORM: "give the same content another shape: translate, reformat, rewrite, correct, repair",
        Intent.CONDITIONAL: "choose from a closed set, or yes or no, to decide what happens next",
        Intent.AGGREGATE: "combine, merge, group or count many items into one result",
        Intent.FILTER: "keep, drop, rank, pick or deduplicate items",
        Intent.ENRICH: "add researched facts, context, tags or annotations to a given item",
    }
)


def parse_intent(text: str) -> Intent:
    """Parse an intent as people write it, in any case and with surrounding white space.

    Raises IntentClassificationError (a ValueError), which lists the ten, for anything else.
    """
    try:
        return Intent(text.strip().lower())
    except ValueError:
        quoted = text.strip()[:40]
        raise IntentClassificationError(f"'{quoted}' is not an intent; the ten are {', '.join(Intent)}.") from None
