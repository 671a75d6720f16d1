"""What a version has learned, shown in the backbone's own words."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.replies import reply
from app.api.routes.tasks import TaskPath
from app.api.routes.versions import NumberPath
from app.api.schemas.vectors import VectorsView
from app.api.services import ServicesDep
from app.api.strict_route import StrictRoute

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
