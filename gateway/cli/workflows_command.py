"""`farebox workflows`, `farebox suggest` and `farebox classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from gateway.cli.connection import CommandError
from gateway.cli.output import cell_text, echo_json, pluralized, timestamp
from gateway.cli.session import Session, command

app = typer.Typer(help="Declarations of workflows.", no_args_is_help=True)

Workflow = Annotated[str, typer.Argument(metavar="WORKFLOW", help="The name of the workflow.")]
Project = Annotated[str, typer.Option(help="The project.")]


@command(app, "list")
def list_workflows(session: Session, project: Project = "default") -> None:
    """List all declarations, by name."""
    response = session.request_all("/workflows", "workflows", {"project": project})
    session.print_rows(
        response,
        lambda: (
            ("workflow", "mode", "steps", "changed", "by"),
            [
                (
                    workflow["workflow"],
                    workflow["mode"],
                    len(workflow["steps"]),
                    timestamp(workflow["updated_at"]),
                    workflow["updated_by"],
                )
                for workflow in response["workflows"]
            ],
        ),
    )


@command(app, "show")
def show_workflow(session: Session, workflow: Workflow, project: Project = "default") -> None:
    """Show one declaration, in the form that `put` accepts."""
    response = session.request("GET", f"/workflows/{workflow}", {"project": project})
    if session.as_json:
        echo_json(response)
        return
    about = ("workflow", "project", "updated_at", "updated_by")
    declared = {name: value for name, value in response.items() if value not in (None, []) and name not in about}
    typer.echo(yaml.safe_dump(declared, sort_keys=False, allow_unicode=True), nl=False)


@command(app, "put")
def put_workflow(
    session: Session,
    workflow: Workflow,
    file: Annotated[Path, typer.Argument(help="YAML or JSON with steps, mode, budget, …; - for standard input.")],
    project: Project = "default",
) -> None:
    """Declare a workflow, or replace its declaration."""
    response = session.request("PUT", f"/workflows/{workflow}", {"project": project}, _read_declaration(file))
    session.print_result(
        response, f"Workflow {response['workflow']} is declared with {pluralized(len(response['steps']), 'step')}."
    )


@command(app, "delete")
def delete_workflow(session: Session, workflow: Workflow, project: Project = "default") -> None:
    """Delete a declaration. Its runs and their usage are kept."""
    response = session.request("DELETE", f"/workflows/{workflow}", {"project": project})
    session.print_result(response, f"The declaration of workflow {workflow} is deleted.")


def suggest(
    session: Session,
    workflow: Workflow,
    apply: Annotated[bool, typer.Option("--apply", help="Create the suggested budgets.")] = False,
    project: Project = "default",
) -> None:
    """Suggest budgets for a workflow from what its runs used: a fifth above the p95 of the last 30 days."""
    response = session.request("POST" if apply else "GET", f"/workflows/{workflow}/suggestions", {"project": project})
    rows = [
        (
            suggestion["scope"],
            suggestion["match"],
            suggestion["samples"],
            suggestion["p95_tokens"],
            suggestion["tokens"],
            suggestion["is_sure"],
        )
        for suggestion in response["suggestions"]
    ]
    if not rows and not session.as_json:
        typer.echo(
            f"No run of {workflow!r} has ended in the last 30 days (or been silent for long enough): nothing to go by."
        )
        return
    session.print_rows(response, lambda: (("scope", "match", "runs", "p95 tokens", "budget tokens", "ten runs"), rows))
    if apply and not session.as_json:
        typer.echo(f"Wrote {pluralized(len(response['applied']), 'budget')}.")


def classify(
    session: Session,
    text: Annotated[str, typer.Argument(help="The step's prompt; - for standard input.")],
    step: Annotated[str | None, typer.Option(help="The step's name.")] = None,
    workflow: Annotated[str | None, typer.Option(help="The workflow's name.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    project: Project = "default",
) -> None:
    """Classify the intent of a step, with the reason."""
    prompt = typer.get_text_stream("stdin").read() if text == "-" else text
    fields = {"prompt": prompt, "step": step, "workflow": workflow, "system": system}
    body = {"steps": [{name: value for name, value in fields.items() if value is not None}]}
    classification = session.request("POST", "/classify", {"project": project}, body)["classifications"][0]
    alternatives = "".join(
        f", {alternative['intent']} {alternative['confidence']:.2f}" for alternative in classification["alternatives"]
    )
    session.print_result(
        classification,
        f"{classification['intent']}  confidence {classification['confidence']:.2f}, "
        f"by {classification['source']}: {cell_text(classification['reasoning'])}"
        + (f"\nalso {alternatives[2:]}" if alternatives else ""),
    )


def _read_declaration(file: Path) -> Any:
    """The mapping in a YAML or JSON file. Raises `CommandError` if it cannot be read or is not a mapping."""
    try:
        text = typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text(encoding="utf-8")
        declared = yaml.safe_load(text)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise CommandError(f"{location}: {error.problem or error.context}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(declared, dict):
        raise CommandError(f"{file} must hold a mapping with steps, not a {type(declared).__name__}.")
    return declared
