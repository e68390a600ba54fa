"""Classification of steps into the ten intents: `classify` finds the intent, `content_key` is the key to cache it under.

The sources, in order: the caller's header, the workflow's declaration, the quick rules, the trained model, and `generate` if
nothing was found. The gateway adds its learned cache and, if one is configured, a language model to ask.
"""

from policies.classify.cache_key import content_key
from policies.classify.chat import step_text_from_chat
from policies.classify.classifier import classify, load_classifier, plan_takes_precedence
from policies.classify.llm_classification import llm_prompt, parse_llm_answer
from policies.classify.step import Alternative, Classification, StepText

__all__ = [
    "Alternative",
    "Classification",
    "StepText",
    "classify",
    "content_key",
    "llm_prompt",
    "load_classifier",
    "parse_llm_answer",
    "plan_takes_precedence",
    "step_text_from_chat",
]
