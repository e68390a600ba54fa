"""The command line as people and scripts use it: real processes, with a running gateway and without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.store.bulk import ignore_conflict, insert
from gateway.store.database import Database
from gateway.store.file_lock import FileLock
from gateway.store.tables import workflows
from tests.acceptance.command_line import Cli, settings_of
from tests.acceptance.scaled_out import redis_or_skip
from tests.farebox_process import FareboxProcess
from tests.ports import free_port


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_create_and_rotate_take_effect_at_once_in_a_running_gateway(
    cli_and_gateway: tuple[Cli, FareboxProcess],
) -> None:
    cli, gateway = cli_and_gateway
    created = cli("keys", "create", "app")
    key = created.out.strip()
    assert created.code == 0
    assert key.startswith("fb_")
    assert len(key.split()) == 1  # the key alone, for scripts
    assert "no admin key" in created.err
    assert gateway.chat("hi").status == 401
    assert gateway.chat("hi", bearer(key)).status == 200
    rotated = cli("keys", "rotate", "app").out.strip()
    assert gateway.chat("hi", bearer(key)).status == 401
    assert gateway.chat("hi", bearer(rotated)).status == 200
    assert "app" in cli("usage", "--by", "key").out.split()  # its name, not its id


def test_keys_commands_need_no_admin_key(cli_and_gateway: tuple[Cli, FareboxProcess]) -> None:
    """The gateway asks for one, but whoever can read its files is its operator."""
    cli, gateway = cli_and_gateway
    admin = cli("keys", "create", "--admin").out.strip()
    key = cli("keys", "create", "app").out.strip()
    assert gateway.get("/api/keys").status == 401
    gateway.stop()
    listed = cli("keys", "list", "--json").json()["keys"]
    assert [(entry["name"], entry["role"], entry["state"]) for entry in listed] == [
        ("app", "", "active"),
        ("admin", "admin", "active"),
    ]
    assert cli("keys", "revoke", "app").code == 0
    gateway.start()
    assert gateway.chat("hi", bearer(key)).status == 401
    assert gateway.get("/api/keys", headers=bearer(admin)).status == 200


def test_keys_set_changes_only_what_is_named(cli: Cli) -> None:
    cli("keys", "create", "app")
    limited = cli("keys", "set", "app", "--requests", "20", "--window", "day", "--concurrency", "2")
    assert "20 calls a day, 2 at once" in limited.out
    warned = cli("keys", "set", "app", "--model", "gone", "--usd", "0.0000001")
    assert warned.err == "No model has the name 'gone' now.\n"
    assert "$0.0000001, 20 calls a day" in warned.out
    assert cli("keys", "set", "app", "--no-limits", "--requests", "20", "--window", "day").code == 0
    changed = cli("keys", "set", "app", "--concurrency", "3", "--agent", "ada", "--model", "openai/*", "--json").json()
    assert changed["limits"] == {"requests": 20, "window": "day", "concurrency": 3}
    assert (changed["agent"], changed["allowed_models"]) == ("ada", ["openai/*"])
    freed = cli("keys", "set", "app", "--no-limits", "--agent", "", "--model", "", "--json").json()
    assert (freed["limits"], freed["agent"], freed["allowed_models"]) == ({}, "", [])
    assert cli("keys", "set", "app", "--tokens", "-1").code == 2


@pytest.mark.parametrize("run", ["2026/11/28", "/home/me/project", "a//b"])
def test_run_ids_with_slashes_are_found(cli_and_gateway: tuple[Cli, FareboxProcess], run: str) -> None:
    cli, gateway = cli_and_gateway
    tags = {"x-workflow-id": "nightly", "x-workflow-run-id": run, "x-workflow-step": "draft"}
    assert gateway.chat("hi", tags).status == 200
    assert cli("runs", "show", run, "--json").json()["run"] == run
    assert gateway.get(f"/api/runs/{quote(run, safe='')}").json()["run"] == run


def test_commands_control_a_run_and_report_its_usage(cli_and_gateway: tuple[Cli, FareboxProcess]) -> None:
    cli, gateway = cli_and_gateway
    tags = {"x-workflow-id": "nightly", "x-workflow-run-id": "r1", "x-workflow-step": "draft"}
    assert gateway.chat("hi", tags).status == 200
    shown = cli("runs", "show", "r1", "--json").json()
    used = shown["tokens"]["settled"]
    assert (shown["calls"], shown["state"]) == (1, "active")
    listed = cli("runs", "list")
    assert "r1" in listed.out
    assert "\x1b[" not in listed.out
    assert cli("runs", "pause", "r1").code == 0
    assert gateway.chat("hi", tags).status == 402
    assert cli("runs", "resume", "r1").code == 0
    assert cli("runs", "budget", "r1", "--tokens", "30000", "--json").json()["tokens"]["limit"] == 30_000
    assert cli("runs", "reset", "r1", "--yes", "--json").json()["run"]["tokens"]["settled"] == 0
    assert cli("runs", "complete", "r1", "--json").json()["metrics"]["calls"] == 1
    again = cli("runs", "cancel", "r1")
    assert again.code == 1
    assert again.err.strip() == "farebox: Run 'r1' is completed."
    usage = cli("usage", "--by", "workflow", "--json").json()
    assert usage["total"]["total_tokens"] == used
    assert cli("usage", "--by", "step", "--csv").out.splitlines()[1].startswith("draft,1,1,")
    assert "r1" in cli("top", "--once").out
    assert "r1" not in cli("top", "--once", "--state", "active").out
    assert cli("reconcile").code == 0
    assert [event["action"] for event in cli("audit", "--action", "run.", "--limit", "9", "--json").json()["events"]][
        :2
    ] == ["run.completed", "run.reset"]


def test_settings_commands_work_without_a_gateway(cli: Cli) -> None:
    assert cli("settings", "set", "max_retry_attempts", "5").code == 0
    assert cli("settings", "get", "orchestration_max_retry_attempts").out.strip() == "5"
    refused = cli("settings", "set", "max_retry_attempts", "50")
    assert refused.code == 1
    assert "0 to 10" in refused.err
    change = cli("settings", "history", "--json").json()["changes"][0]
    assert (change["old"], change["new"]) == (2, 5)
    assert change["changed_by"].startswith("cli:")
    assert cli("settings", "revert", str(change["id"])).code == 0
    assert cli("settings", "list", "--changed", "--json").json()["settings"] == []


def test_workflows_budgets_and_suggest_commands_work_without_a_gateway(cli: Cli) -> None:
    declaration = "mode: enforce\nsteps:\n  - {id: read, intent: extract}\n  - {id: tell, prompt: Summarize it.}\n"
    assert cli("workflows", "put", "nightly", "-", stdin=declaration).code == 0
    shown = cli("workflows", "show", "nightly").out
    (cli.folder / "again.yaml").write_text(shown)
    assert cli("workflows", "put", "copy", "again.yaml").code == 0
    listed = cli("workflows", "list", "--json").json()["workflows"]
    assert [workflow["steps"] for workflow in listed] == [listed[0]["steps"]] * 2
    budget = cli("budgets", "create", "workflow", "nightly", "--usd", "0.5", "--window", "day", "--json").json()
    assert budget["usd"] == 0.5
    assert budget["id"] in cli("budgets", "list").out
    assert cli("budgets", "delete", budget["id"]).code == 0
    assert "nothing to go by" in cli("suggest", "nightly").out
    unlimited = cli("budgets", "create", "run", "nightly")
    assert (unlimited.code, "--tokens" in unlimited.err) == (1, True)
    nowhere = cli("workflows", "put", "nightly", "nowhere.yaml")
    assert nowhere.err == "farebox: nowhere.yaml cannot be read: No such file or directory.\n"
    assert cli("suggest", "nightly", "--apply").code == 1
    bad = cli("workflows", "put", "nightly", "-", stdin="steps: [{id: a b}]")
    assert bad.code == 1
    assert "steps.0.id" in bad.err


def test_budget_without_accounts_of_its_own_says_where_they_are_or_that_nothing_was_used(cli: Cli) -> None:
    assert "0" not in cli("budgets", "list").out.split("file:0")[1].split("enforce")[1].split()
    assert cli("budgets", "show", "file:0").out == (
        "Each run that * matches has an account of its own; `farebox runs list` shows them.\n"
    )
    budget = cli("budgets", "create", "agent", "support-*", "--requests", "5", "--json").json()
    assert cli("budgets", "show", budget["id"]).out == (
        "No agent that support-* matches has made a call yet, so there is no account.\n"
    )
    assert cli("budgets", "show", budget["id"], "--json").json()["accounts"] == []


def test_classify_reads_an_argument_or_stdin(cli: Cli) -> None:
    classification = cli(
        "classify", "Summarize the following thread in three sentences.", "--step", "summarize", "--json"
    ).json()
    assert classification["intent"] == "summarize"
    translation = cli("classify", "-", stdin="Translate this into French: hello")
    assert translation.out.startswith("transform  confidence 0.")


FAULTY = """model_list:
  - model_name: a
    litellm_params: {model: openai/a}
budgets:
  - {scope: run, tokens: 5}
  - {scope: team, tokens: 5}
server:
  prt: 4000
"""


def test_check_reports_file_line_and_column_of_each_fault(cli: Cli) -> None:
    fine = cli("check")
    assert (fine.code, fine.out.splitlines()[-1]) == (0, "The configuration is fine.")
    (cli.folder / "faulty.yaml").write_text(FAULTY)
    faulty = cli("check", config="faulty.yaml")
    assert faulty.code == 2
    lines = faulty.err.strip().splitlines()
    assert lines[0].startswith("faulty.yaml:6:6: budgets[1].scope: ")
    assert lines[1].startswith("faulty.yaml:8:3: server.prt: unknown key")
    assert len(lines) == 2
    as_json = cli("check", "--json", config="faulty.yaml")
    assert (as_json.code, json.loads(as_json.out)["faults"]) == (2, lines)
    assert cli("keys", "list", config="faulty.yaml").code == 2
    assert (
        cli("keys", "list", config="nowhere.yaml").err
        == "farebox: nowhere.yaml: cannot be read: No such file or directory.\n"
    )


def test_init_writes_a_configuration_that_check_accepts(cli: Cli) -> None:
    assert cli("init", "new.yaml").code == 0
    assert cli("check", config="new.yaml").code == 0
    assert cli("init", "new.yaml").code == 1
    assert cli("init", "new.yaml", "--force").code == 0
    assert cli("init", "new/folder/config.yaml").code == 0
    assert cli("check", config="new/folder/config.yaml").code == 0
    nowhere = cli("init", "new.yaml/config.yaml")
    assert (nowhere.code, nowhere.err) == (1, "farebox: new.yaml cannot be written: File exists.\n")


def test_check_and_doctor_report_unsafe_redis_settings(cli: Cli) -> None:
    with redis_or_skip("--maxmemory-policy", "allkeys-lru", "--appendonly", "no") as server:
        settings = settings_of(cli.folder, free_port())
        settings["storage"]["ledger"] = server.url
        (cli.folder / "redis.yaml").write_text(json.dumps(settings))
        assert cli("migrate", config="redis.yaml").code == 0
        for output in (cli("check", config="redis.yaml"), cli("doctor", config="redis.yaml")):
            assert output.code == 1
            assert "maxmemory-policy is allkeys-lru" in output.out + output.err
            assert "Traceback" not in output.out + output.err
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        fit = cli("check", "--json", config="redis.yaml").json()["ledger"]
        assert (fit["fault"], fit["unreached"], len(fit["warnings"])) == ("", "", 1)
        assert "appendonly is off" in fit["warnings"][0]
        by_check = {
            finding["check"]: finding["status"]
            for finding in cli("doctor", "--json", config="redis.yaml").json()["findings"]
        }
        assert (by_check["ledger"], by_check["ledger policy"]) == ("ok", "warn")
    away = cli("check", config="redis.yaml")
    assert (away.code, "cannot be reached" in away.err) == (0, True)


def test_migrate_and_doctor_report_the_state_without_a_gateway(cli: Cli) -> None:
    assert cli("migrate", "--check").code == 1
    assert cli("migrate").code == 0
    assert cli("migrate", "--check", "--json").json()["is_current"] is True
    report = cli("doctor", "--json").json()
    assert report["is_fit"] is True
    assert {"versions", "ledger", "ledger clock", "store", "store schema"} <= {
        finding["check"] for finding in report["findings"]
    }
    (cli.folder / "ledger.db").write_bytes(b"this is no ledger" * 100)
    ill = cli("doctor", "--json")
    assert ill.code == 1
    by_check = {finding["check"]: finding["status"] for finding in json.loads(ill.out)["findings"]}
    assert (by_check["ledger"], by_check["store schema"]) == ("fail", "ok")
    assert "farebox explain gateway, or docs/errors.md" in cli("doctor").out


def test_explain_describes_error_codes_log_events_and_doctor_checks(cli: Cli) -> None:
    assert "402; control API 409" in cli("explain", "run_paused").out
    assert "Check Redis" in cli("explain", "ledger_out_of_reach").out
    assert cli("explain", "ledger clock", "--json").json()["do"] == "Synchronise both machines' clocks with NTP."
    unknown = cli("explain", "run_pausd")
    assert unknown.code == 1
    assert "did you mean 'run_paused'?" in unknown.err


def test_doctor_and_migrate_check_succeed_while_a_gateway_runs(cli_and_gateway: tuple[Cli, FareboxProcess]) -> None:
    cli, _ = cli_and_gateway
    assert cli("doctor").code == 0
    assert cli("migrate", "--check").code == 0


def test_commands_find_a_gateway_on_another_port_by_its_store(cli: Cli, tmp_path: Path) -> None:
    """The configuration names one port and `--port` another; something else may listen on the first."""
    gateway = FareboxProcess(tmp_path, json.loads((tmp_path / "config.yaml").read_text()))
    gateway.start()
    try:
        assert cli("keys", "create", "app").code == 0
        assert [key["name"] for key in cli("keys", "list", "--json").json()["keys"]] == ["app"]
        assert cli("keys", "list", "--url", gateway.url).code == 0
        assert cli("doctor").code == 0
        assert f"{gateway.url}/v1" in cli("env", "--client", "curl").out
        password = cli("admin", stdin="correct horse battery\n")
        nobody = cli("admin", "a b", stdin="correct horse battery\n")
        assert (
            nobody.err == "farebox: 'a b' is no name for a login: a name is 1 to 128 letters, digits and . _ : @ / -, "
            "without . or .. alone between slashes.\n"
        )
        assert "at least 12 characters" in cli("admin", stdin="short\n").err
        assert (password.code, password.out) == (0, "admin may log in at /admin as admin.\n")
    finally:
        gateway.kill()
    # What it left behind is no gateway: the files are free.
    assert [key["name"] for key in cli("keys", "list", "--json").json()["keys"]] == ["app"]


def test_commands_do_not_use_another_configurations_gateway(
    cli_and_gateway: tuple[Cli, FareboxProcess], tmp_path: Path
) -> None:
    _, gateway = cli_and_gateway
    (tmp_path / "other").mkdir()
    port = int(gateway.url.rpartition(":")[2])
    (tmp_path / "other" / "config.yaml").write_text(json.dumps(settings_of(tmp_path / "other", port)))
    other = Cli(tmp_path / "other")
    assert other("keys", "create", "mine").code == 0
    assert gateway.chat("hi").status == 200  # it has no key
    lock = FileLock(tmp_path / "other" / "store.db")
    lock.acquire()
    taken = other("keys", "list")
    lock.release()
    assert (taken.code, taken.err.count("\n"), "used by another process" in taken.err) == (1, 1, True)
    assert "tried for 5 s" in taken.err


def test_check_shows_no_password_of_an_engine(cli: Cli, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "config.yaml").read_text())
    for store in ("postgresql://u:hunter@2/@h/db", "postgresql://h/db?user=u&password=hunter@2/&sslmode=require"):
        config["storage"]["store"] = store
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        shown = cli("check").out
        assert ("hunter" in shown, "@2" in shown, "h/db" in shown) == (False, False, True), shown


def test_list_without_limit_has_all_items_of_all_pages(cli: Cli, tmp_path: Path) -> None:
    async def declare(count: int) -> None:
        store = Database(f"sqlite:///{tmp_path}/store.db")
        await store.open()
        await store.migrate(0)
        rows = [{"project": "default", "name": f"w{number:04}", "updated_at": 0} for number in range(count)]
        async with store.begin() as connection:
            await insert(connection, workflows, rows, ignore_conflict)
        await store.close()

    asyncio.run(declare(2_001))
    listed = cli("workflows", "list")
    assert (listed.code, listed.err) == (0, "")
    names = [line.split()[0] for line in listed.out.splitlines() if line.lstrip().startswith("w0") or "w2000" in line]
    assert (len(cli("workflows", "list", "--json").json()["workflows"]), names[-1]) == (2_001, "w2000")


def test_login_set_by_the_command_is_in_the_audit_log(cli: Cli, tmp_path: Path) -> None:
    """Whether the command writes to the store itself or asks the gateway that has it."""
    assert cli("admin", stdin="correct horse battery\n").code == 0
    gateway = FareboxProcess(tmp_path, json.loads((tmp_path / "config.yaml").read_text()))
    gateway.start()
    try:
        assert cli("admin", "second", "--role", "viewer", stdin="correct horse battery\n").code == 0
        events = cli("audit", "--action", "admin.", "--json").json()["events"]
    finally:
        gateway.stop()
    said = [(event["actor"].partition(":")[0], event["target"], event["detail"]) for event in events]
    assert said == [("cli", "second", {"role": "viewer"}), ("cli", "admin", {"role": "admin"})]


@contextlib.contextmanager
def store_locked_for(seconds: float, file: Path) -> Iterator[None]:
    """Holds the store open, as a gateway does before it listens."""
    lock = FileLock(file)
    lock.acquire()
    release = threading.Timer(seconds, lock.release)
    release.start()
    yield
    release.join()


def test_commands_and_gateway_wait_for_a_locked_store(cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    with store_locked_for(2.0, store):
        assert cli("keys", "create", "app").code == 0
    with store_locked_for(1.5, store):
        assert cli("admin", stdin="correct horse battery\n").code == 0
    gateway = FareboxProcess(tmp_path, json.loads((tmp_path / "config.yaml").read_text()))
    with store_locked_for(2.0, store):
        gateway.start()
    gateway.stop()


def test_command_succeeds_while_a_gateway_starts(cli: Cli, tmp_path: Path) -> None:
    gateway = FareboxProcess(tmp_path, json.loads((tmp_path / "config.yaml").read_text()))
    starting = threading.Thread(target=gateway.start)
    starting.start()
    created = cli("keys", "create", "app")
    starting.join()
    assert (created.code, gateway.chat("hi", {"authorization": f"Bearer {created.out.strip()}"}).status) == (0, 200), (
        created.err
    )
    gateway.stop()


def test_remote_gateway_requires_an_admin_key(cli_and_gateway: tuple[Cli, FareboxProcess], tmp_path: Path) -> None:
    cli, gateway = cli_and_gateway
    admin = cli("keys", "create", "--admin").out.strip()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.yaml").write_text("{}")
    elsewhere = Cli(tmp_path / "elsewhere", {"FAREBOX_URL": gateway.url})
    stranger = elsewhere("runs", "list")
    assert stranger.code == 1
    assert f"{gateway.url} says" in stranger.err
    assert "FAREBOX_ADMIN_KEY" in stranger.err
    elsewhere.environment["FAREBOX_ADMIN_KEY"] = admin
    assert elsewhere("runs", "list").code == 0
    gone = Cli(cli.folder)("runs", "list", "--url", "http://127.0.0.1:9")
    assert gone.code == 1
    assert gone.err == "farebox: http://127.0.0.1:9 cannot be reached: Connection refused. Does the gateway run?\n"


def test_env_prints_snippets_with_the_configured_address(cli: Cli) -> None:
    port = json.loads((cli.folder / "config.yaml").read_text())["server"]["port"]
    text = cli("env", "--client", "openai-python", "--workflow", "nightly").out
    assert f"http://127.0.0.1:{port}/v1" in text
    assert "nightly" in text
    assert "{{" not in text
    assert cli("env", "--client", "nobody").code == 1
    assert cli("env", "--client", "claude").out == cli("env", "--client", "claude-code").out
    assert "openai-python, openai-node, openai-agents." in cli("env", "--client", "openai").err
    expected = ["openai-python", "openai-node", "langchain", "llamaindex", "crewai", "openai-agents", "pydantic-ai"]
    expected += ["vercel-ai", "claude-code", "codex", "aider", "llm", "cursor", "open-webui", "litellm", "n8n", "curl"]
    assert set(expected) <= {client["client"] for client in cli("env", "--json").json()["clients"]}


def test_env_prints_snippets_with_the_running_gateways_address(cli_and_gateway: tuple[Cli, FareboxProcess]) -> None:
    cli, gateway = cli_and_gateway
    gateway.stop()
    gateway.arguments = ()  # on a free port, which the configuration does not know
    gateway.start()
    assert f"{gateway.url}/v1" in cli("env", "--client", "openai-python").out


@pytest.mark.parametrize("option", [["--config", "other.yaml"], ["--config=other.yaml"]])
def test_config_option_is_accepted_before_or_after_the_command(cli: Cli, option: list[str]) -> None:
    (cli.folder / "other.yaml").write_text("tiers: {fast: [none]}\n")
    for arguments in ([*option, "check"], ["check", *option], ["check", "--json", *option]):
        output = cli(*arguments)
        assert (output.code, "other.yaml:1" in output.out + output.err) == (2, True), arguments


def test_arguments_after_a_double_dash_are_not_options(cli: Cli) -> None:
    assert cli("classify", "--", "--config=other.yaml").code == 0


def test_serve_without_keys_refuses_a_public_host(cli: Cli) -> None:
    output = cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert output.code == 1
    lines = [line for line in output.err.splitlines() if "--allow-anonymous" in line]
    assert len(lines) == 1
    assert "Traceback" not in output.err


def test_usage_errors_exit_with_2(cli: Cli) -> None:
    assert cli("runs", "show").code == 2
    assert cli("no-such-command").code == 2
    assert cli("--help").code == 0
