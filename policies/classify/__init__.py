"""Which of the ten intents a step has: `classify` for the answer, `content_key` for remembering it.

The sources in order: the caller's header, the workflow's declaration, the quick rules, the trained model, and `generate`
when nothing was seen. The gateway puts its learned cache and, if there is one, a model to ask around this.
"""

from policies.classify.answer import classify, load_classifier
from policies.classify.chat import step_text_from_chat
from policies.classify.key import content_key
from policies.classify.question import llm_question, parse_llm_answer
from policies.classify.step import Alternative, Classification, StepText

__all__ = [
    "Alternative",
    "Classification",
    "StepText",
    "classify",
    "content_key",
    "llm_question",
    "load_classifier",
    "parse_llm_answer",
    "step_text_from_chat",
]
