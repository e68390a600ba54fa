"""A crew of two, a researcher and a writer. Each of its runs has a budget.

The tasks are those of CrewAI's own quick start: research a topic, then report on it. The first run has room. The second one is
tightened by a header, as an application does for a customer on a small plan: it ends with the work that was done, not with a bill.
"""

from __future__ import annotations

import os
import uuid

from crewai import LLM, Agent, Crew, Process, Task
from openai import APIStatusError

RUN = os.environ.get("RUN_ID", f"crew-{uuid.uuid4().hex[:8]}")


def build_llm(run: str, step: str, budget_tokens: int | None) -> LLM:
    headers = {"x-workflow-id": "example-crew", "x-workflow-run-id": run, "x-workflow-step": step}
    if budget_tokens is not None:
        headers["x-workflow-budget-tokens"] = str(budget_tokens)
    return LLM(
        model="openai/mock",
        base_url=os.environ.get("FAREBOX_BASE_URL", "http://127.0.0.1:4000/v1"),
        api_key=os.environ.get("FAREBOX_KEY", "local"),
        default_headers=headers,
    )


def build_crew(run: str, budget_tokens: int | None = None) -> Crew:
    researcher = Agent(
        role="Senior travel researcher",
        goal="Find what is worth knowing about {topic}",
        backstory="You find the one page that says something new.",
        llm=build_llm(run, "research", budget_tokens),
        max_retry_limit=0,
    )
    writer = Agent(
        role="Reporting analyst",
        goal="Turn findings about {topic} into a report",
        backstory="You write what people read to the end.",
        llm=build_llm(run, "report", budget_tokens),
        max_retry_limit=0,
    )
    research = Task(
        description="Research {topic}, and list ten findings.",
        expected_output="Ten findings, a line each.",
        agent=researcher,
    )
    report = Task(
        description="Write the findings out into a report.",
        expected_output="A report, a paragraph for each finding.",
        agent=writer,
        context=[research],
    )
    return Crew(agents=[researcher, writer], tasks=[research, report], process=Process.sequential)


def find_refusal(error: BaseException | None) -> APIStatusError | None:
    """The gateway's refusal, however deeply CrewAI has wrapped it."""
    while error is not None:
        if isinstance(error, APIStatusError) and error.status_code == 402:
            return error
        error = error.__cause__ or error.__context__
    return None


def run_crew(run: str, budget_tokens: int | None = None) -> None:
    crew = build_crew(run, budget_tokens)
    try:
        result = crew.kickoff(inputs={"topic": "Lisbon on foot"})
        print(f"{run}: finished, {len(str(result))} characters")
    except Exception as error:
        refusal = find_refusal(error)
        if refusal is None:
            raise
        finished = [task for task in crew.tasks if task.output]
        message = refusal.body["message"]  # type: ignore[index]
        print(f"{run}: stopped with {len(finished)} of {len(crew.tasks)} tasks done, {refusal.code}: {message}")


run_crew(f"{RUN}-roomy")
run_crew(f"{RUN}-tight", budget_tokens=260)
