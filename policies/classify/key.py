"""The key under which a learned intent is remembered."""

from __future__ import annotations

import hashlib
import json

from policies.classify.features import is_generic_name
from policies.classify.instruction import instruction_part, window
from policies.classify.step import StepText


def content_key(step: StepText) -> str:
    """A stable hash (32 hexadecimal digits) of what makes two calls the same step.

    Workflow, step, system prompt, the tools in any order, and the response format; the instruction part of the prompt
    only when the step's name says nothing, because then one name covers many kinds of call.
    """
    told = instruction_part(step.prompt) if is_generic_name(step.step) else None
    parts = [
        step.workflow,
        step.step,
        window(step.system) if step.system else None,
        sorted(step.tools),
        step.response_format,
        told,
    ]
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
