"""Nested runs: every ancestor is charged for its descendants, and cycles are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.tags import PARENT_HEADER
from tests.api_client import Api, close_api, make_persistent_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    persistent_api = await make_persistent_api(tmp_path)
    yield persistent_api
    await close_api(persistent_api)


async def chat(api: Api, run: str, parent: str | None = None, **fields: Any) -> httpx.Response:
    inside = {} if parent is None else {PARENT_HEADER: parent}
    return await api.chat(run, **inside, **fields)


def fault(reply: httpx.Response) -> tuple[int, str, str]:
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


BAD_PARENT = (400, "invalid_header", PARENT_HEADER)


async def test_run_cannot_be_its_own_parent(api: Api) -> None:
    assert fault(await chat(api, "a", "a")) == BAD_PARENT
    assert (await api.get("/api/runs/a"))["parent_run"] == ""


async def test_run_cannot_be_a_child_of_its_own_descendant(api: Api) -> None:
    for run, parent in (("a", None), ("b", "a"), ("c", "b")):
        assert (await chat(api, run, parent)).status_code == 200
    for parent in ("b", "c"):
        assert fault(await chat(api, "a", parent)) == BAD_PARENT
        status, error = await api.refused("POST", "/api/runs", {"workflow": "w", "run": "a", "parent_run": parent})
        assert (status, error["param"]) == (400, "parent_run")
    assert (await chat(api, "a")).status_code == 200
    assert [(await api.get(f"/api/runs/{run}"))["parent_run"] for run in "abc"] == ["", "a", "b"]


async def test_other_gateway_finds_a_cycle_through_the_store(api: Api, tmp_path: Path) -> None:
    for run, parent in (("a", None), ("b", "a"), ("c", "b")):
        await chat(api, run, parent)
    await close_api(api)
    other = await make_persistent_api(tmp_path)
    try:
        assert fault(await chat(other, "a", "c")) == BAD_PARENT
    finally:
        await close_api(other)


async def test_header_cannot_change_the_announced_parent(api: Api, tmp_path: Path) -> None:
    await api.post("/api/runs", {"workflow": "w", "run": "outer"})
    await api.post("/api/runs", {"workflow": "w", "run": "inner", "parent_run": "outer"})
    assert fault(await chat(api, "inner", "elsewhere")) == BAD_PARENT
    assert (await chat(api, "inner", "outer")).status_code == 200
    await close_api(api)
    other = await make_persistent_api(tmp_path)
    try:
        assert fault(await chat(other, "inner", "elsewhere")) == BAD_PARENT
        assert (await chat(other, "inner")).status_code == 200
        assert (await other.get("/api/runs/outer"))["tokens"]["settled"] > 0
    finally:
        await close_api(other)


@pytest.mark.parametrize("is_announced", [False, True])
async def test_other_gateway_charges_every_ancestor(api: Api, tmp_path: Path, is_announced: bool) -> None:
    await chat(api, "a")
    await chat(api, "b", "a")
    if is_announced:
        await api.post("/api/runs", {"workflow": "nightly", "run": "c", "parent_run": "b"})
    spent = (await api.get("/api/runs/a"))["tokens"]["settled"]
    await close_api(api)
    other = await make_persistent_api(tmp_path)
    try:
        used = (await chat(other, "c", None if is_announced else "b")).json()["usage"]["total_tokens"]
        assert (await other.get("/api/runs/a"))["tokens"]["settled"] == spent + used
    finally:
        await close_api(other)


async def test_unknown_parent_is_charged_and_limited_as_a_run_of_the_same_workflow(api: Api) -> None:
    used = (await chat(api, "child", "ghost")).json()["usage"]["total_tokens"]
    reply = await chat(api, "ghost")
    assert reply.headers["x-budget-run-limit"] == "20000"
    assert reply.headers["x-budget-run-remaining"] == str(20000 - used - reply.json()["usage"]["total_tokens"])


async def test_run_nested_deeper_than_8_parents_is_refused(api: Api) -> None:
    replies = [await chat(api, f"r{depth}", f"r{depth - 1}" if depth else None) for depth in range(10)]
    assert [reply.status_code for reply in replies] == [200] * 9 + [400]
    assert fault(replies[-1]) == BAD_PARENT
    used = sum(reply.json()["usage"]["total_tokens"] for reply in replies[:-1])
    assert (await api.get("/api/runs/r0"))["tokens"]["settled"] == used
