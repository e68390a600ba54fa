"""Which runs are left as they are, so that what the others save can be measured against them.

By run, not by call: what one call of a run saves changes what its later calls carry, which model has their prompt cache, and
how much budget they find. A run of both kinds would measure neither. And by the run's name, not by chance: every process
decides alike, a repeated call is decided like the first, and whoever looks later can tell.
"""

from enum import StrEnum
from hashlib import sha256

_DIGITS = 16
_SCALE = 16**_DIGITS


class Arm(StrEnum):
    """The two sides of the comparison."""

    TREATED = "treated"
    HOLDOUT = "holdout"


def arm_of(project: str, run: str, holdout_share: float) -> Arm:
    """The side of a run. Of many runs, `holdout_share` (0 to 1) are held out; a larger share holds out the same ones and more."""
    digest = sha256(f"{project}\x00{run}".encode("utf-8", "surrogatepass")).hexdigest()
    return Arm.HOLDOUT if int(digest[:_DIGITS], 16) < holdout_share * _SCALE else Arm.TREATED
