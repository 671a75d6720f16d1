"""What a version has learned: shown in the backbone's own words, and what each part of it is worth."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.leave_one_out import leave_one_out
from app.api.replies import reply
from app.api.routes.tasks import TaskPath
from app.api.routes.versions import NumberPath
from app.api.schemas.vectors import LeaveOneOutBody, LeaveOneOutView, VectorsView
from app.api.services import Services, ServicesDep
from app.api.sse import connected
from app.api.strict_route import StrictRoute
from app.errors import InvalidRequest
from app.training import RowSet
from app.training.requests import TrainingData

router = APIRouter(route_class=StrictRoute, tags=["versions"])
WordsQuery = Annotated[int, Query(ge=1, le=50, description="Nearest words of each vector.")]


@router.get(
    "/v1/tasks/{task}/versions/{number}/vectors",
    summary="Explain a version's vectors",
    description=(
        "Each vector's norm and nearest words of the vocabulary, reserved tokens left out. Keys and values (prefix "
        "tuning) have norms only; a hand-written prompt has nothing to show."
    ),
    response_model=VectorsView,
)
async def explain_version(task: TaskPath, number: NumberPath, services: ServicesDep, words: WordsQuery = 5) -> Response:
    prompt = await services.registry.resolve_version(f"{task}@{number}")
    vectors, norms = await services.engine.explain(prompt, words=words)
    return reply(VectorsView.of(prompt, vectors, norms))


@router.post(
    "/v1/tasks/{task}/versions/{number}/leave-one-out",
    summary="Score a version without each of its vectors",
    description=(
        "The version's score on labelled rows, and its score with each virtual token left out, the others moved "
        "together. Everything is answered by the engine, rows times virtual tokens; leaving cancels it."
    ),
    response_model=LeaveOneOutView,
)
async def score_without_each(
    task: TaskPath, number: NumberPath, body: LeaveOneOutBody, services: ServicesDep, request: Request
) -> Response:
    longest = services.settings.max_timeout_s
    if body.timeout_s is not None and body.timeout_s > longest:
        raise InvalidRequest(f"timeout_s may be {longest:g} at most", param="timeout_s")
    prompt = await services.registry.resolve_version(f"{task}@{number}")
    spec = services.registry.task(task).spec
    rows = await services.ask_jobs(partial(_read, services, body.data))
    found = await connected(
        request,
        leave_one_out(services, prompt, spec, rows, sample=body.sample, timeout_s=body.timeout_s or longest),
    )
    return reply(LeaveOneOutView.of(prompt, found))


def _read(services: Services, data: TrainingData) -> RowSet:
    if data.inline is not None:
        return services.datasets.parse_inline(data.inline)
    assert data.dataset is not None
    return services.datasets.read(services.datasets.pin(data.dataset))
