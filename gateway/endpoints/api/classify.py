"""/api/classify: classifies the intents of steps, with reasons. Nothing is stored, and no model is asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from gateway.control import Snapshot
from gateway.endpoints.api.route import ApiRequest, Route
from gateway.endpoints.api.schema import STEPS_MAX, Line, Name, ProjectQuery, Strict, Text
from gateway.runs.plan import step_text
from policies.classify import Classification, classify
from policies.declaration import flattened
from policies.intents import Intent, parse_intent


class ClassifyStep(Strict):
    workflow: Name | None = None
    step: Name | None = None
    system: Text | None = None
    prompt: Text
    tools: Annotated[tuple[Line | dict[str, Any], ...], Field(max_length=200)] | None = None
    response_format: dict[str, Any] | Text | None = None


class ClassifyBatch(Strict):
    steps: Annotated[tuple[ClassifyStep, ...], Field(min_length=1, max_length=STEPS_MAX)]


def _form_of_body(body: Any) -> str:
    """Which of the two forms a body has, so that only the faults of that form are reported."""
    return "Batch" if isinstance(body, ClassifyBatch) or (isinstance(body, dict) and "steps" in body) else "Step"


ClassifyBody = Annotated[
    Annotated[ClassifyBatch, Tag("Batch")] | Annotated[ClassifyStep, Tag("Step")], Discriminator(_form_of_body)
]


@dataclass(frozen=True, slots=True)
class AlternativeView:
    intent: str
    confidence: float


@dataclass(frozen=True, slots=True)
class ClassificationView:
    """`confidence` is the calibrated probability (0 to 1) that a careful reader would agree."""

    intent: str
    confidence: float
    source: str
    reasoning: str
    alternatives: tuple[AlternativeView, ...]


@dataclass(frozen=True, slots=True)
class Classifications:
    """In the order of the steps."""

    classifications: tuple[ClassificationView, ...]


async def classify_steps(request: ApiRequest[ProjectQuery, ClassifyBody]) -> Classifications:
    """Classify one step, or several in `steps`. A step that its workflow declares with an intent has that intent."""
    steps = request.body.steps if isinstance(request.body, ClassifyBatch) else (request.body,)
    snapshot = request.services.parts.control.snapshot
    views: list[ClassificationView] = []
    for step in steps:
        views.append(_view(_classified(step, snapshot, request.project)))
        await asyncio.sleep(0)  # hundreds of long prompts take half a second, in which calls want their turns
    return Classifications(tuple(views))


def _classified(step: ClassifyStep, snapshot: Snapshot, project: str) -> Classification:
    text = step_text(step.model_dump(), step.workflow)
    threshold = snapshot.settings.intent_classification_confidence_threshold
    return classify(text, declared=_declared(step, snapshot, project), confidence_threshold=threshold)


def _declared(step: ClassifyStep, snapshot: Snapshot, project: str) -> Intent | None:
    workflow = snapshot.workflow(project, step.workflow) if step.workflow and step.step else None
    steps = flattened(workflow.declaration.get("steps") or ()) if workflow is not None else []
    intents = [
        declared_step["intent"]
        for declared_step in steps
        if declared_step["id"] == step.step and declared_step.get("intent")
    ]
    return parse_intent(intents[0]) if intents else None


def _view(classification: Classification) -> ClassificationView:
    alternatives = tuple(
        AlternativeView(alternative.intent, alternative.confidence) for alternative in classification.alternatives
    )
    return ClassificationView(
        classification.intent, classification.confidence, classification.source, classification.reasoning, alternatives
    )


ROUTES = (
    Route(
        "POST",
        "/classify",
        classify_steps,
        Classifications,
        "Classify the intents of steps.",
        body=ClassifyBody,
        is_question=True,
    ),
)
