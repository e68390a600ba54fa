"""Runs a client's snippet, then what people do next: a stream, a tool call, and the snippet again where no budget is left.

Started with the client's own interpreter, in a folder that holds `snippet.py` and `refused.py`. The report is the line of
its output that starts with REPORT.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(name: str) -> None:
    sys.path[:0] = [str(Path.cwd()), str(Path(__file__).parent)]
    scenario = importlib.import_module(name.replace("-", "_") + "_scenario")
    snippet = importlib.import_module("snippet")
    report: dict[str, Any] = {"streamed": scenario.stream(snippet), "tool": scenario.tool(snippet)}
    try:
        importlib.import_module("refused")
    except Exception as error:
        report["refused"] = {
            "types": [kind.__module__ + "." + kind.__name__ for kind in type(error).__mro__],
            "message": str(error),
        }
    # In one piece: frameworks draw on the terminal from threads of their own.
    sys.stdout.write("\nREPORT " + json.dumps(report) + "\n")


main(sys.argv[1])
