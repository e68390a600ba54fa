"""The choice of the runs that are left alone, so that the savings of the others can be measured against them.

By run, not by call: what one call saves affects the later calls of its run, namely their content, the model that has their
prompt cache, and the budget that is left. A mixed run would measure neither. And by the run's name, not at random: every
process decides alike, repeated calls are decided alike, and the decision can be reproduced later.
"""

from enum import StrEnum
from hashlib import sha256

_DIGEST_DIGITS = 16
_DIGEST_RANGE = 16**_DIGEST_DIGITS


class Arm(StrEnum):
    """The two sides of the comparison."""

    TREATED = "treated"
    HOLDOUT = "holdout"


def arm_of(project: str, run: str, holdout_share: float) -> Arm:
    """The side of a run. `holdout_share` (0 to 1) of many runs are held out; a larger share holds out the same runs and more."""
    digest = sha256(f"{project}\x00{run}".encode("utf-8", "surrogatepass")).hexdigest()
    return Arm.HOLDOUT if int(digest[:_DIGEST_DIGITS], 16) < holdout_share * _DIGEST_RANGE else Arm.TREATED
