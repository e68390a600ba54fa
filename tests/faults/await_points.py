"""Every place where the pipeline waits, found in its source, and a fault at any of them.

`install` makes an importer that compiles the modules below `gateway/pipeline` with a call at each `await`, `async for` and
`async with`. It belongs to the tests alone: the product has no such hook. Install it before anything of the gateway is imported.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "gateway.pipeline"
FOLDER = Path(__file__).parents[2] / "gateway" / "pipeline"
# error: what is waited for breaks at once. outage: it is the ledger, and out of reach. cancel: the task is cancelled while it
# waits. late: it is cancelled when the result is there already, which is then lost. gone: the client leaves. kill: kill -9.
KINDS = ("error", "outage", "cancel", "late", "gone")
LEDGER = FOLDER.parent / "ledger"


class Injected(Exception):
    """A fault that nobody expects."""


@dataclass
class Faults:
    """What shall happen at the next arrival at `armed`, and what was reached."""

    points: dict[str, str] = field(default_factory=dict)  # place → the function it is in
    reached: dict[str, tuple[str, ...]] = field(default_factory=dict)  # place → what can happen there
    armed: str = ""
    kind: str = ""
    leave: Callable[[], None] = lambda: None
    struck: str = ""

    def arm(self, point: str, kind: str, leave: Callable[[], None] = lambda: None) -> None:
        self.armed, self.kind, self.leave, self.struck = point, kind, leave, ""

    def disarm(self) -> None:
        self.armed = ""

    def _strikes(self, point: str, awaited: Any) -> bool:
        if point not in self.reached:
            self.reached[point] = _kinds_for(awaited)
        if point != self.armed:
            return False
        self.armed, self.struck = "", point
        return True

    def before(self, point: str, awaited: Any) -> bool:
        """True: cancel the task once what it waits for is there."""
        if not self._strikes(point, awaited):
            return False
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "error":
            raise Injected(point)
        if self.kind == "outage":
            from gateway.ledger.port import LedgerUnavailable

            raise LedgerUnavailable(point)
        if self.kind == "cancel":
            _cancel_this_task()
        if self.kind == "gone":
            self.leave()
        return self.kind == "late"

    async def at(self, point: str, awaited: Any) -> Any:
        try:
            is_late = self.before(point, awaited)
        except BaseException:
            if inspect.iscoroutine(awaited):
                awaited.close()
            raise
        result = await awaited
        if is_late:
            _cancel_this_task()
            await asyncio.sleep(0)
        return result

    async def each(self, point: str, items: Any) -> AsyncIterator[Any]:
        async for item in items:
            if self.before(point, items):
                _cancel_this_task()
                await asyncio.sleep(0)
            yield item

    @asynccontextmanager
    async def within(self, point: str, context: Any) -> AsyncIterator[Any]:
        if self.before(point, context):
            _cancel_this_task()
            await asyncio.sleep(0)
        async with context as entered:
            yield entered


def _is_of(awaited: Any, folder: Path) -> bool:
    code = getattr(awaited, "cr_code", None) or getattr(awaited, "ag_code", None)
    return code is not None and code.co_filename.startswith(str(folder))


def _kinds_for(awaited: Any) -> tuple[str, ...]:
    """What breaks, and what a cancelled task hears of, is the innermost thing that is waited for: those above see it pass."""
    if _is_of(awaited, FOLDER):
        return ("cancel", "gone")
    return KINDS if _is_of(awaited, LEDGER) else ("error", "cancel", "late", "gone")


def _cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


class _Marked(ast.NodeTransformer):
    def __init__(self, faults: Faults, module: str) -> None:
        self._faults = faults
        self._module = module.rpartition(".")[2]
        self._inside: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._in(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._in(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._in(node)

    def visit_Await(self, node: ast.Await) -> ast.AST:
        self.generic_visit(node)
        node.value = self._call("at", node, node.value)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        self.generic_visit(node)
        node.iter = self._call("each", node.iter, node.iter)
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        self.generic_visit(node)
        for item in node.items:
            item.context_expr = self._call("within", item.context_expr, item.context_expr)
        return node

    def _in(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()
        return node

    def _call(self, method: str, at: Any, value: ast.expr) -> ast.expr:
        point = f"{self._module}:{at.lineno}:{at.col_offset}"
        self._faults.points[point] = ".".join([self._module, *self._inside])
        target = ast.Attribute(ast.Name("__faults__", ast.Load()), method, ast.Load())
        return ast.copy_location(ast.Call(target, [ast.Constant(point), value], []), value)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, faults: Faults, name: str, path: str) -> None:
        super().__init__(name, path)
        self._faults = faults

    def get_code(self, fullname: str) -> CodeType:
        """From the source, always: the cached bytecode is that of the product."""
        path = self.get_filename(fullname)
        tree = _Marked(self._faults, self.name).visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__faults__"] = self._faults
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if not fullname.startswith(PACKAGE + "."):
            return None
        file = FOLDER / f"{fullname.rpartition('.')[2]}.py"
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(self._faults, fullname, str(file)))


def install() -> Faults:
    assert not [name for name in sys.modules if name.startswith(PACKAGE)], "too late: the pipeline is there already"
    faults = Faults()
    sys.meta_path.insert(0, _Finder(faults))
    return faults
