"""Turns error replies of Redis and of our scripts into errors of the ledger port that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway.ledger.port import LedgerError, LedgerUnavailable
from gateway.ledger.redis_connection import RedisReplyError

# Temporary conditions, or ones that an operator can end: nothing was written, and the call may be retried.
_UNAVAILABLE: Final = {
    "BUSY": "another script blocks Redis",
    "LOADING": "Redis is loading its data from disk",
    "READONLY": "this Redis is a replica: a failover is under way, or the URL names the wrong server",
    "OOM": "Redis is full: raise maxmemory, or let the outbox drain to the store",
    "MISCONF": "Redis cannot write its data to disk",
    "CLUSTERDOWN": "the Redis Cluster is not complete",
    "TRYAGAIN": "the Redis Cluster is moving these keys",
    "MASTERDOWN": "the replica has lost its primary",
    "NOREPLICAS": "Redis demands more replicas than it has",
    "NOAUTH": "Redis asks for a password: put it into the ledger URL",
    "WRONGPASS": "Redis does not accept the user or password of the ledger URL",
    "NOPERM": "the Redis user of the ledger URL lacks a permission (it needs scripts and all keys farebox:*)",
}
# The same for replies that have no code of their own.
_UNAVAILABLE_BY_TEXT: Final = {
    "max number of clients": "Redis takes no more connections: raise maxclients",
    "unauthenticated": _UNAVAILABLE["NOAUTH"],  # instead of NOAUTH, for a command that is long
    "The user executing the script can't": _UNAVAILABLE["NOPERM"],
}
_DAMAGED: Final = {
    "FAREBOX_DAMAGED": "a key of the ledger does not hold what the ledger wrote (edited by hand?). Repair or delete it, then restore",
    "FAREBOX_LAYOUT": "the data was written by a newer Farebox. Upgrade this gateway",
    "FAREBOX_OVERFLOW": "an account would hold more than 2^53 - 1",
    "FAREBOX_ACCOUNTS": "the reservation holds on other accounts than the ones given",
    "WRONGTYPE": "a key of the ledger is of another type (written by another program?). Delete it, then restore",
    "CROSSSLOT": "the keys of one project are not on one node",
}


def as_port_error(reply_error: RedisReplyError) -> LedgerError:
    """The error of the port for an error reply."""
    # Redis appends ` script: <sha>, on @user_script:<line>.`, which does not help readers of the gateway's log.
    detail = reply_error.detail.partition(" script: ")[0]
    if reply_error.code in _UNAVAILABLE:
        return LedgerUnavailable(f"{_UNAVAILABLE[reply_error.code]} ({reply_error.code} {detail})")
    if reply_error.code == "ERR":
        for text, meaning in _UNAVAILABLE_BY_TEXT.items():
            if text in detail:
                return LedgerUnavailable(f"{meaning} ({reply_error.code} {detail})")
    if reply_error.code in _DAMAGED:
        return LedgerError(f"{_DAMAGED[reply_error.code]} ({reply_error.code} {detail})")
    return LedgerError(f"Redis refused a command: {reply_error.code} {detail}")


@contextmanager
def port_error() -> Iterator[None]:
    """Raise errors of Redis in this block as errors of the port."""
    try:
        yield
    except RedisReplyError as reply_error:
        raise as_port_error(reply_error) from reply_error
