"""`farebox` as the tests start it: a call that blocks the event loop fails where it is made, and is written to the log.

Python tells an audit hook (PEP 578) of every file that is opened, name that is looked up, process that is started and so on; one
that raises ends the call. Workers import this module again, and are watched like the first process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from gateway.cli import main
from tests.farebox_process import BLOCKED

_BLOCKING: Final = frozenset({
    "fcntl.flock", "fcntl.lockf", "import", "open", "os.fork", "os.link", "os.listdir", "os.mkdir", "os.posix_spawn", "os.remove",
    "os.rename", "os.rmdir", "os.scandir", "os.symlink", "os.system", "os.truncate", "os.fdatasync", "os.fsync", "shutil.copyfile",
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "sqlite3.connect", "subprocess.Popen", "time.sleep",
})  # fmt: skip
# Where blocking is intended.
_ALLOWED: Final = (
    ("uvicorn/server.py", {"_serve"}),  # before the first call and after the last one
    ("gateway/app.py", {"start", "stop", "_lifespan"}),  # also what tidies up after a start that failed
    ("gateway/store/migration.py", {"_upgrade"}),  # then, too, on a stack of its own
    ("policies/windows.py", {"zone_of"}),  # two KB, once for each zone
    ("linecache.py", {"updatecache"}),  # the lines of a traceback, which is a bug's
    ("asyncpg/connect_utils.py", {"_read_password_file"}),
)


class LoopBlocked(Exception):
    """An audit event, on a thread whose event loop runs."""


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _BLOCKING or asyncio._get_running_loop() is None or _is_harmless(event, arguments):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "/site-packages/litellm/" in frame.f_code.co_filename:
            return  # what it still imports at its first call of a kind, and where its tokenizers are
        for file, functions in _ALLOWED:
            if frame.f_code.co_name in functions and frame.f_code.co_filename.endswith(file):
                return
        frame = frame.f_back
    # In the log, too, because a handler of other errors may catch this one.
    os.write(2, f"{BLOCKED}{event} {arguments[:1]}\n{''.join(traceback.format_stack()[:-1])}".encode())
    raise LoopBlocked(event)


def _is_harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[0], int)  # it is open already
    if event == "socket.connect":
        return not arguments[0].getblocking()
    return event == "time.sleep" and not arguments[0]


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Python has no event for these."""

    def checking(*arguments: Any) -> Any:
        _check(name, arguments)
        return function(*arguments)

    return checking


os.fsync, os.fdatasync = _checked("os.fsync", os.fsync), _checked("os.fdatasync", os.fdatasync)
if sys.version_info < (3, 13):
    time.sleep = _checked("time.sleep", time.sleep)
sys.addaudithook(_check)
if __name__ == "__main__":
    main()
