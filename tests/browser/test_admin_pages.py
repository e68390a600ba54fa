"""The admin pages escape every input, serve their own files only, and their forms change what they say."""

from __future__ import annotations

import hashlib
import html
import http.client
import json
import re
import time
from datetime import UTC, datetime
from importlib.resources import files
from urllib.parse import urlsplit

import pytest

from gateway.admin.formatting import money
from gateway.admin.pages.usage import METRICS
from policies.settings import SETTINGS
from tests.browser.conftest import Client
from tests.browser.page_text import section, table_rows, values
from tests.farebox_process import FareboxProcess, tagged

EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


def test_overview_without_calls_shows_how_to_make_one(guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    page = html.unescape(program.get("/admin").text)
    assert f'OpenAI(base_url="{guarded.url}/v1", api_key="fb_…"' in page
    assert 'model="writer"' in page
    assert "data-chart=" not in page
    assert "data-chart=" not in program.get("/admin/usage").text


def test_vendored_files_match_their_digests() -> None:
    folder = files("gateway.admin").joinpath("static")
    listed = re.findall(r"\| `([^`]+)` \|.*`([0-9a-f]{64})` \|", folder.joinpath("VENDORED.md").read_text())
    assert len(listed) == 5
    for name, digest in listed:
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest, name


def test_static_files_are_versioned_and_no_others_are_served(client: Client) -> None:
    paths = re.findall(r'(?:href|src)="(/admin/static/[^"]+)"', client.get("/admin/usage").text)
    assert len(paths) >= 6
    for path in paths:
        reply = client.get(html.unescape(path))
        assert reply.status == 200
        assert "immutable" in reply.headers["cache-control"]
    for path in ("VENDORED.md", "nothing.js", "%2e%2e%2fauthentication.py"):
        assert client.get(f"/admin/static/{path}").status in (400, 404)


def test_user_input_is_escaped_on_every_page(guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    declaration = json.dumps({"description": f"</textarea>{EVIL}", "steps": [{"id": "one", "prompt": EVIL}]})
    pages = [
        program.post("/admin/keys", {"name": EVIL, "role": ""}),
        program.post("/admin/budgets", {"scope": "workflow", "match": EVIL, "tokens": "5", "window": "day"}),
        program.post("/admin/agents/evil", {"creation": "3", "note": EVIL}),
        program.post("/admin/workflows/evil", {"action": "save", "declaration": declaration}),
        program.post("/admin/workflows/evil", {"action": "preview", "declaration": EVIL}),
        program.post("/admin/settings/review", {"orchestration_max_retry_attempts": EVIL}),
    ]
    query = "%22%3E%3Cscript%3Ealert(3)%3C/script%3E"
    looked_at = ("keys", "audit", "budgets", "agents/evil", "workflows/evil", "workflows", f"usage?workflow={query}")
    pages += [program.get(f"/admin/{page}") for page in (*looked_at, f"budgets?run={query}", f"audit?actor={query}")]
    assert {page.status for page in pages} <= {200, 303, 400}
    assert sum("&lt;script&gt;" in page.text for page in pages) >= 8
    for page in pages:
        assert "<img src=x" not in page.text
        assert "<script>" not in page.text


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_chart_and_a_table(metric: str, client: Client) -> None:
    page = client.get(f"/admin/usage?metric={metric}&group_by=step")
    assert page.status == 200
    assert "data-chart=" in page.text
    assert {name for name, _ in table_rows(page.text, "usage")} >= {"extract", "draft", "check"}


def test_usage_csv_has_the_rows_of_the_table(client: Client) -> None:
    reply = client.get("/admin/usage.csv?group_by=step&workflow=intake")
    assert reply.headers["content-type"].startswith("text/csv")
    assert {line.partition(",")[0] for line in reply.text.splitlines()[1:]} >= {"extract", "draft", "check"}


def test_settings_are_reviewed_saved_and_reverted(client: Client) -> None:
    page = client.get("/admin/settings").text
    assert {key for key in SETTINGS if f'name="{key}"' in page} == set(SETTINGS)
    review = client.post("/admin/settings/review", {"orchestration_max_retry_attempts": "3"})
    assert re.search(r'class="old">2<.*class="new">3<', review.text, re.DOTALL)
    form = {"orchestration_max_retry_attempts": "3", "was:orchestration_max_retry_attempts": "2"}
    assert client.post("/admin/settings", form).status == 303
    assert client.post("/admin/settings", form).status == 409, "it is 3 by now: somebody else changed it first"
    change = re.search(r'name="id" value="(\d+)"', client.get("/admin/settings/history").text)
    assert change
    assert client.post("/admin/settings/history", {"id": change[1]}).status == 303
    assert (
        'value="2"'
        in re.findall(r'<input[^>]*name="orchestration_max_retry_attempts"[^>]*>', client.get("/admin/settings").text)[
            0
        ]
    )


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"orchestration_max_retry_attempts": "11"}, "0 to 10; given"),
        ({"orchestration_compression_aggressiveness": "wild"}, "one of low, medium, high"),
        ({"orchestration_ais_fast_tier_max_score": "9"}, "is above"),
        ({"orchestration_token_budget_send": "many"}, "a whole number from 1"),
    ],
)
def test_invalid_settings_are_refused_and_kept_in_the_form(client: Client, form: dict[str, str], says: str) -> None:
    reply = client.post("/admin/settings/review", form)
    assert reply.status == 400
    assert says in html.unescape(reply.text)
    assert "Nothing was saved" in reply.text
    if form.keys() != {"orchestration_compression_aggressiveness"}:  # a select cannot show an unknown option
        assert f'value="{next(iter(form.values()))}"' in reply.text


def test_run_is_paused_resumed_given_a_budget_and_cancelled(client: Client, gateway: FareboxProcess) -> None:
    def state() -> str:
        match = re.search(r'<h1 class="id">r-2</h1><span class="state ([a-z]+)"', client.get("/admin/runs/r-2").text)
        assert match
        return match[1]

    tags = tagged("intake", "r-2", "check")
    assert client.post("/admin/runs/r-2", {"action": "pause"}).headers["location"] == "/admin/runs/r-2?done=pause"
    assert state() == "paused"
    assert gateway.chat("hi", tags, model="small").json()["error"]["code"] == "run_paused"
    assert "The run is paused" in client.get("/admin/budgets?run=r-2").text
    client.post("/admin/runs/r-2", {"action": "resume"})
    assert gateway.chat("hi", tags, model="small", max_tokens=10).status == 200
    assert client.post("/admin/runs/r-2", {"action": "budget", "tokens": "9000", "usd": ""}).status == 303
    assert "of <data" in client.get("/admin/runs/r-2").text
    assert 'value="9000"' in client.get("/admin/runs/r-2").text
    refused = client.post("/admin/runs/r-2", {"action": "budget", "tokens": "many", "usd": "2"})
    assert (refused.status, "must be a whole number" in refused.text) == (400, True)
    assert 'name="tokens" inputmode="numeric" pattern="[0-9,]*" value="many"' in refused.text, "what was typed stays"
    assert client.post("/admin/runs/r-2", {"action": "explode"}).status == 400
    client.post("/admin/runs/r-2", {"action": "cancel"})
    assert state() == "cancelled"
    assert client.post("/admin/runs/r-2", {"action": "resume"}).status == 409


def test_budgets_page_names_the_budget_that_blocks_a_call(client: Client, gateway: FareboxProcess) -> None:
    budget = {"scope": "workflow", "match": "triage", "tokens": "60", "window": "day"}
    assert client.post("/admin/budgets", budget).status == 303
    tags = tagged("triage", "r-3", "draft")
    statuses = {gateway.chat("hi", tags, model="small", max_tokens=10).status for _ in range(12)}
    assert statuses == {200, 429}
    page = client.get("/admin/budgets?run=r-3&step=draft").text
    verdict = re.search(r'class="notice verdict [a-z]+"[^>]*>(.*?)</p>', page)
    assert verdict
    assert "Workflow “triage”" in html.unescape(verdict[1])
    match = re.search(r'name="id" value="(budget-[0-9a-f]+)"', page)
    assert match
    changed = {"id": match[1], "scope": "workflow", "match": "triage", "tokens": "20", "window": "day"}
    assert client.post("/admin/budgets", changed).status == 303
    assert 'class="bullet over"' in section(client.get("/admin/budgets").text, "All budgets"), (
        "the bar shows that it is exceeded"
    )
    changed["tokens"] = "50,000"
    assert client.post("/admin/budgets", changed).status == 303
    assert "Nothing blocks it" in client.get("/admin/budgets?run=r-3&step=draft").text
    assert client.post("/admin/budgets", {"scope": "workflow", "match": "x"}).status == 400
    nobody = client.post("/admin/budgets", {"scope": "workflow", "match": " ", "tokens": "5"})
    assert nobody.status == 400
    assert "must be a name, or a pattern of names" in nobody.text
    assert client.post("/admin/budgets/delete", {"id": match[1]}).status == 303
    assert match[1] not in client.get("/admin/budgets").text


def test_overview_shows_a_budget_whose_use_rounds_to_0_percent(client: Client, gateway: FareboxProcess) -> None:
    form = {"scope": "workflow", "match": "frugal", "usd": "1000000", "window": "month"}
    assert client.post("/admin/budgets", form).status == 303
    assert gateway.chat("hi", tagged("frugal", "r-frugal", "s"), model="small", max_tokens=20).status == 200
    nearest = section(client.get("/admin/overview").text, "Nearest to their limits")
    assert "<b>frugal</b>" in nearest
    assert "No budget is on" not in nearest
    budget_ids = re.findall(r'name="id" value="(budget-[0-9a-f]+)"', client.get("/admin/budgets").text)
    for budget in budget_ids:
        client.post("/admin/budgets/delete", {"id": budget})


def test_budgets_page_shows_an_observed_budget_as_not_blocking(client: Client, gateway: FareboxProcess) -> None:
    steps = [{"id": "s", "intent": "send", "budget": {"tokens": 20}}]
    text = json.dumps({"mode": "observe", "steps": steps})
    assert client.post("/admin/workflows/watched", {"action": "save", "declaration": text}).status == 303
    for _ in range(3):
        assert gateway.chat("hi", tagged("watched", "r-w", "s"), model="small", max_tokens=20).status == 200
    page = client.get("/admin/budgets?run=r-w&step=s").text
    assert "observed" in page
    assert "Nothing blocks it" in page


def test_workflow_is_previewed_declared_observed_and_deleted(client: Client) -> None:
    steps = [{"id": "extract", "intent": "extract"}, {"id": "draft", "intent": "generate", "priority": "high"}]
    text = json.dumps({"budget": {"tokens": 1500}, "steps": steps})
    preview = client.post("/admin/workflows/triage", {"action": "preview", "declaration": text})
    for strategy in ("equal", "proportional", "adaptive", "priority"):
        assert f'<th class="n">{strategy}</th>' in preview.text
    assert preview.text.count('<td class="n">1,500</td>') == 4, "every strategy gives the whole pool away"
    assert "not declared" in client.get("/admin/workflows/triage").text
    assert client.post("/admin/workflows/triage", {"action": "save", "declaration": text}).status == 303
    assert client.post("/admin/workflow-mode/triage", {"mode": "observe"}).status == 303
    page = html.unescape(client.get("/admin/workflows/triage").text)
    assert '"mode": "observe"' in page
    assert '"tokens": 1500' in page
    broken = client.post("/admin/workflows/triage", {"action": "save", "declaration": '{"steps": [{"id": 7}]}'})
    assert broken.status == 400
    assert "{&#34;steps&#34;: [{&#34;id&#34;: 7}]}" in broken.text, "what was typed stays in the editor"
    assert client.post("/admin/workflows/triage", {"action": "delete"}).status == 303


def test_suggested_budgets_equal_those_of_the_api_and_can_be_set(client: Client, gateway: FareboxProcess) -> None:
    assert gateway.chat("hi", tagged("learned", "r-done", "draft"), model="small", max_tokens=20).status == 200
    assert "Nothing to learn from yet" in client.get("/admin/workflows/learned").text
    assert gateway.request("POST", "/api/runs/r-done/complete").status == 200
    suggestions = gateway.get("/api/workflows/learned/suggestions").json()["suggestions"]
    rows = re.findall(
        r"<tr><td[^>]*>([^<]+)</td>(.*?)</tr>", section(client.get("/admin/workflows/learned").text, "Suggested")
    )
    assert [(name, values(cells)) for name, cells in rows] == [
        ({"run": "the run"}.get(suggestion["scope"], "draft"), [suggestion["p95_tokens"], suggestion["tokens"]])
        for suggestion in suggestions
    ]
    assert client.post("/admin/workflows/learned", {"action": "suggested"}).status == 303
    limits = {budget["match"]: budget["tokens"] for budget in gateway.get("/api/budgets").json()["budgets"]}
    assert {suggestion["match"]: suggestion["tokens"] for suggestion in suggestions}.items() <= limits.items()


def test_declaration_fault_is_shown_once_and_bidi_characters_are_escaped(client: Client) -> None:
    for action in ("save", "preview"):
        page = client.post("/admin/workflows/triage", {"action": action, "declaration": '{"budget": "x"}'})
        assert (page.status, page.text.count("budget: must be an object")) == (400, 1)
    turned = json.dumps({"description": "pay \u202eeno on", "steps": []}, ensure_ascii=False)
    assert client.post("/admin/workflows/turned", {"action": "save", "declaration": turned}).status == 303
    shown = client.get("/admin/workflows/turned").text
    assert "\u202e" not in shown
    assert "pay \\u202eeno on" in shown
    client.post("/admin/workflows/turned", {"action": "delete"})


def test_key_forms_keep_invalid_input_and_refuse_a_duplicate_name(guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    typed = {"name": "form", "tokens": "many", "agent": "ada", "window": "day"}
    refused = program.post("/admin/keys", typed)
    assert (refused.status, "must be a whole number" in refused.text) == (400, True)
    for kept_field in ('name="name" value="form"', 'name="tokens" value="many"', 'name="agent" value="ada"'):
        assert kept_field in refused.text
    reply = program.post("/admin/keys", {**typed, "tokens": "5", "allowed_models": "nope, sm*"})
    assert reply.status == 200
    assert "No model has the name &#39;nope&#39; now." in reply.text
    assert "sm*" not in section(reply.text, "The key form")
    again = program.post("/admin/keys", {**typed, "tokens": "5"})
    assert (again.status, "There is a key &#39;form&#39; already" in again.text) == (409, True)
    key_id = json.loads(program.get("/api/keys/form").text)["id"]
    wrong = program.post("/admin/keys/change", {"id": key_id, "concurrency": "none"})
    assert (wrong.status, 'name="concurrency" value="none"' in wrong.text) == (400, True)
    saved = program.post("/admin/keys/change", {"id": key_id, "allowed_models": "small, gone"})
    assert (saved.status, "Saved. No model has the name &#39;gone&#39; now." in saved.text) == (200, True)
    assert program.post("/admin/keys/change", {"id": key_id, "allowed_models": "small"}).status == 303


def test_invalid_cursor_is_refused_with_400(client: Client) -> None:
    runs = re.findall(r'href="(/admin/runs/[^"?]+)"', client.get("/admin/runs").text)
    for path in ("/admin/runs", "/admin/audit", "/admin/usage", runs[0]):
        assert client.get(f"{path}?cursor=nonsense").status == 400, path


def test_agent_score_change_is_in_the_audit(client: Client) -> None:
    client.post("/admin/agents/bot-1", {"creation": "4", "execution": "6", "note": "by hand"})
    page = client.get("/admin/audit?action=agent.").text
    assert "agent.intensity" in page
    assert "setting.changed" not in page
    assert "5.40" in client.get("/admin/agents/bot-1").text  # 0.3 × 4 + 0.7 × 6


def test_health_page_reports_drift(client: Client) -> None:
    page = client.get("/admin/health?check=drift").text
    assert re.search(r"0 on all \d+ accounts", page)


def test_run_row_shows_its_shared_budgets(guarded: FareboxProcess) -> None:
    """Of the workflow, the agent, the key of its latest call and the project: as the control API tells them."""
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    admin = {"authorization": "Bearer a-long-admin-key"}
    created = guarded.request(
        "POST", "/api/keys", {"name": "metered", "limits": {"requests": 4, "window": "day"}}, admin
    )
    budget = {"scope": "agent", "match": "ada", "usd": 0.01, "window": "hour"}
    assert guarded.request("POST", "/api/budgets", budget, admin).status == 200
    headers = tagged("intake", "r-shared", "check", agent="ada") | {"authorization": f"Bearer {created.json()['key']}"}
    assert guarded.chat("hi", headers, model="small", max_tokens=20).status == 200
    page = html.unescape(program.get("/admin/runs?workflow=intake").text)
    row = re.search(r'<tr id="run-r-shared">(.*?)</tr>', page, re.DOTALL)
    assert row
    titles = dict(re.findall(r'title="(\w+ [\w-]+): ([^"]+)"', row[1]))
    budgets = guarded.request("GET", "/api/budgets", headers=admin).json()["budgets"]
    accounts = {(budget["scope"], account["scope_id"]): account for budget in budgets for account in budget["accounts"]}
    intake, ada, default = (
        accounts[name] for name in (("workflow", "intake"), ("agent", "ada"), ("project", "default"))
    )
    assert titles == {
        "Workflow intake": f"today {intake['tokens_settled']:,} of 100,000 tokens",
        "Agent ada": f"this hour {money(ada['usd_settled'])} of $0.01",
        "Key metered": "today 1 of 4 requests",
    }
    of_project = re.search(r'<tr id="of-project".*?</tr>', page, re.DOTALL)
    assert of_project
    assert f"Project default: this month {money(default['usd_settled'])} of $5.00" in of_project[0]
    live = program.get("/admin").text
    assert "Key metered" in live, "the latest runs of the overview show them too"


def test_budgets_page_names_an_exhausted_key_limit(guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    admin = {"authorization": "Bearer a-long-admin-key"}
    created = guarded.request("POST", "/api/keys", {"name": "spent", "limits": {"requests": 1, "window": "day"}}, admin)
    headers = tagged("triage", "r-spent", "check") | {"authorization": f"Bearer {created.json()['key']}"}
    statuses = [guarded.chat("hi", headers, model="small", max_tokens=20).status for _ in range(2)]
    assert statuses == [200, 429]
    page = html.unescape(program.get("/admin/budgets?workflow=triage&key=spent").text)
    assert "Key “spent” has used up its budget: 1 of 1 requests." in page


def test_chart_excludes_the_day_of_the_to_parameter(client: Client) -> None:
    match = re.search(r"data-chart='([^']+)'", client.get("/admin/usage?from=2026-01-01").text)
    assert match
    last = json.loads(html.unescape(match[1]))["days"][-1]
    tomorrow = datetime.fromtimestamp(last + 86_400, UTC).date().isoformat()
    match = re.search(r"data-chart='([^']+)'", client.get(f"/admin/usage?from=2026-01-01&to={tomorrow}").text)
    assert match
    assert json.loads(html.unescape(match[1]))["days"][-1] == last


def test_live_event_stream_sends_a_new_run(gateway: FareboxProcess) -> None:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=20)
    connection.request("GET", "/admin/live/runs?workflow=triage", headers={"sec-fetch-site": "same-origin"})
    stream = connection.getresponse()
    assert stream.getheader("content-type", "").startswith("text/event-stream")
    first = _rows_event(stream)
    assert gateway.chat("hi", tagged("triage", "r-live", "draft"), model="small", max_tokens=10).status == 200
    assert "r-live" not in first
    assert "r-live" in _rows_event(stream)
    connection.close()


def _rows_event(stream: http.client.HTTPResponse) -> str:
    lines: list[str] = []
    while True:
        line = stream.readline().decode().rstrip("\n")
        if line.startswith("data: "):
            lines.append(line)
        elif not line and lines:
            return "\n".join(lines)


@pytest.mark.parametrize("group", ["workflow", "day"])
def test_chart_of_a_long_time_shows_its_latest_400_days(client: Client, group: str) -> None:
    page = client.get(f"/admin/usage?from=2020-01-01&group_by={group}").text
    match = re.search(r"data-chart='([^']+)'", page)
    assert match
    chart = json.loads(html.unescape(match[1]))
    today_s = time.time() // 86_400 * 86_400
    assert (len(chart["days"]), chart["days"][-1]) == (400, today_s)
    assert sum(part["values"][-1] for part in chart["parts"]) > 0
    assert "the latest 400 days" in page
    assert "the latest" not in client.get(f"/admin/usage?group_by={group}").text
