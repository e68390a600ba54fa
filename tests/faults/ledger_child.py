"""A process of its own that uses an SQLite ledger: `python -m tests.faults.ledger_child MODE FILE [UID]`.

hold   open the ledger, say `open`, and wait to be killed
spend  reserve and settle without end, sixteen calls at a time; say what was acknowledged after it was:
       `reserved ID TOKENS`, `settled ID TOKENS`, `voided ID 0`
try    open, reserve once and close; say `done` or the error. With a UID, as that user.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from gateway.ledger.port import Ledger, LedgerError, Reserve
from gateway.ledger.sqlite import SqliteLedger
from policies.amounts import Amount, Limit
from policies.reservation import Demand, Granted, Hold, OnLost

CHAIN = (Hold("step:a", Limit(10**12)), Hold("run:r", Limit(10**12)))


def say(line: str) -> None:
    # One write, so that the reader never sees half a line of a killed process.
    os.write(1, f"{line}\n".encode())


def request(name: str, tokens: int) -> Reserve:
    return Reserve(name, str(os.getpid()), CHAIN, Demand(0, tokens, tokens), 3_600_000, b"{}", OnLost.CHARGE)


async def spend(ledger: Ledger, worker: int) -> None:
    for n in itertools.count():
        name, tokens = f"{os.getpid()}-{worker}-{n}", 10 + n % 90
        answer = await ledger.reserve("p", request(name, tokens))
        assert isinstance(answer, Granted)
        say(f"reserved {name} {tokens}")
        if n % 5 == 4:
            await ledger.void("p", name)
            say(f"voided {name} 0")
        else:
            await ledger.settle("p", name, Amount(tokens // 2, 0, 1), b"{}")
            say(f"settled {name} {tokens // 2}")


async def main(mode: str, path: Path, user: str | None = None) -> None:
    if user is not None:
        os.setuid(int(user))
    ledger = SqliteLedger(path)
    try:
        await ledger.open()
        if mode == "try":
            await ledger.reserve("p", request("c1", 10))
            await ledger.close()
            say("done")
    except LedgerError as error:
        say(f"{type(error).__name__}: {error}")
        return
    if mode == "hold":
        say("open")
        await asyncio.sleep(3_600)
    if mode == "spend":
        await asyncio.gather(*(spend(ledger, worker) for worker in range(16)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
