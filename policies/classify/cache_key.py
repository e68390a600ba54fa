"""The cache key of a learned intent."""

from __future__ import annotations

import hashlib
import json

from policies.classify.features import is_generic_name
from policies.classify.instruction import clip, instruction_part
from policies.classify.step import StepText


def content_key(step: StepText) -> str:
    """A stable hash (32 hexadecimal digits) that is equal for calls of the same step.

    Includes the workflow, step, system prompt, tools in any order, and response format. The instruction part of the prompt is
    included only if the step's name says nothing, because then one name covers many kinds of call.
    """
    instruction = instruction_part(step.prompt) if is_generic_name(step.step) else None
    parts = [
        step.workflow,
        step.step,
        clip(step.system) if step.system else None,
        sorted(step.tools),
        step.response_format,
        instruction,
    ]
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
