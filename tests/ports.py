from __future__ import annotations

import socket


def free_port(highest: int = 65_535) -> int:
    """A port of this machine that nothing listens on."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= highest:
            return port
