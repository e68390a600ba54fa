"""The compressor's policy and its result."""

from dataclasses import replace
from enum import StrEnum
from typing import Any

from policies.values import value_class


class Strategy(StrEnum):
    """The values of the ten `orchestration_compression_strategy_*` settings, from the mildest to the strongest."""

    NONE = "none"
    STRUCTURAL = "structural"
    TEMPLATE = "template"
    TRUNCATE = "truncate"
    EXTRACTIVE = "extractive"
    SEMANTIC = "semantic"


class Aggressiveness(StrEnum):
    """How far a strategy may go. `high` may change the form of JSON tables and pages, but not their content."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


TARGET_RATIO_MIN = 0.1


@value_class
class CompressionPolicy:
    """How the calls of one intent are compressed.

    `target_ratio` (0.1–1.0) is the share of a segment's tokens that a lossy strategy keeps; `min_quality` (0–1) is the score
    below which it keeps more. Raises ValueError outside these ranges.
    """

    strategy: Strategy = Strategy.STRUCTURAL
    target_ratio: float = 0.5
    min_quality: float = 0.8
    aggressiveness: Aggressiveness = Aggressiveness.MEDIUM

    def __post_init__(self) -> None:
        if not TARGET_RATIO_MIN <= self.target_ratio <= 1.0:
            raise ValueError(f"target_ratio must be between {TARGET_RATIO_MIN} and 1.0, not {self.target_ratio}")
        if not 0.0 <= self.min_quality <= 1.0:
            raise ValueError(f"min_quality must be between 0 and 1, not {self.min_quality}")

    @property
    def effective(self) -> "CompressionPolicy":
        """The policy itself; for a minimum quality of 1.0, one that only uses strictly lossless stages."""
        if self.min_quality < 1.0 or self.strategy is Strategy.NONE:
            return self
        return replace(self, strategy=Strategy.STRUCTURAL, aggressiveness=Aggressiveness.LOW)


@value_class
class Compressed:
    """The result for a chat. `messages` is None if the original is to be used, and `reason` says why.

    `actions` lists each stage that saved something, with the tokens it saved: `("structural=900", "truncate=340")`.
    """

    messages: list[dict[str, Any]] | None
    tokens_before: int
    tokens_after: int
    quality: float
    actions: tuple[str, ...]
    reason: str

    @property
    def tokens_saved(self) -> int:
        return self.tokens_before - self.tokens_after
