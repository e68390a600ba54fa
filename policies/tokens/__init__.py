"""Token counts of requests: pure rules on top of a function that counts one string.

`counting_for` says how a model counts, the `count_…` functions apply the rules of a protocol, and a `PromptCount` has the
expected number and the upper bound, which is reserved.
"""

from policies.tokens.chat import count_chat
from policies.tokens.completions import count_completion, count_embeddings
from policies.tokens.counting import Counting, Family, counting_for
from policies.tokens.messages import count_messages
from policies.tokens.prompt import CachedCost, CountText, PromptCount, with_model_factor
from policies.tokens.responses import count_responses, with_history

__all__ = [
    "CachedCost",
    "CountText",
    "Counting",
    "Family",
    "PromptCount",
    "count_chat",
    "count_completion",
    "count_embeddings",
    "count_messages",
    "count_responses",
    "counting_for",
    "with_history",
    "with_model_factor",
]
