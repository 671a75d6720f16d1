"""A task's immutable versions and the aliases that move between them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.errors import ErrorBody
from app.api.preconditions import etag, expected_revision
from app.api.replies import no_content, reply
from app.api.request_headers import PRECONDITIONS
from app.api.routes.tasks import Limit, TaskPath
from app.api.schemas.aliases import AliasBody, AliasView
from app.api.schemas.base import Page
from app.api.schemas.tasks import VersionView
from app.api.services import ServicesDep
from app.api.strict_route import StrictRoute
from app.errors import CapabilityMissing
from prompt_store.models import ALIAS_NAME

router = APIRouter(route_class=StrictRoute, tags=["versions"])
NumberPath = Annotated[int, Path(ge=1, le=999_999_999, description="A version's number.")]
AliasPath = Annotated[str, Path(pattern=ALIAS_NAME, description="An alias, such as `prod`.")]
AfterNumber = Annotated[int, Query(ge=0, le=999_999_999, description="Number of the last version of the page before.")]


@router.get("/v1/tasks/{task}/versions", summary="List a task's versions", response_model=Page[VersionView])
async def list_versions(task: TaskPath, services: ServicesDep, after: AfterNumber = 0, limit: Limit = 100) -> Response:
    versions, has_more = services.registry.versions(task, after=after, limit=limit)
    aliases = services.registry.aliases(task)
    return reply(Page[VersionView](data=[VersionView.of(one, aliases) for one in versions], has_more=has_more))


@router.get("/v1/tasks/{task}/versions/{number}", summary="Get a version with its card", response_model=VersionView)
async def get_version(task: TaskPath, number: NumberPath, services: ServicesDep) -> Response:
    version = services.registry.version(task, number)
    return reply(VersionView.of(version, services.registry.aliases(task)))


@router.delete(
    "/v1/tasks/{task}/versions/{number}",
    summary="Retire a version",
    description="The version answers no more and keeps its number and card. 409 while an alias mentions it.",
    response_model=VersionView,
)
async def retire_version(task: TaskPath, number: NumberPath, services: ServicesDep) -> Response:
    version = await services.registry.retire_version(task, number)
    return reply(VersionView.of(version, services.registry.aliases(task)))


@router.get("/v1/tasks/{task}/aliases/{alias}", summary="Get an alias", response_model=AliasView)
async def get_alias(task: TaskPath, alias: AliasPath, services: ServicesDep) -> Response:
    found = services.registry.alias(task, alias)
    return reply(AliasView.of(found), headers={"etag": etag(found.revision)})


@router.put(
    "/v1/tasks/{task}/aliases/{alias}",
    summary="Move an alias",
    description=(
        "To one version, a weighted split of versions (one answers each row), or an ensemble (all answer each row, by "
        "vote or by mean probability). "
        "Compare-and-set: `If-Match` with the alias's ETag moves it only if nobody has moved it since; "
        "`If-None-Match: *` only creates. Without either it moves in any case. Rolling back is moving it back."
    ),
    response_model=AliasView,
    responses={409: {"model": ErrorBody, "description": "The alias was moved meanwhile; `x-should-retry: false`."}},
    openapi_extra=PRECONDITIONS,
)
async def move_alias(
    task: TaskPath, alias: AliasPath, body: AliasBody, services: ServicesDep, request: Request
) -> Response:
    expected = expected_revision(request.headers)
    target = body.target()
    if target.ensemble is not None and len(target.versions) > services.settings.max_rows:
        raise CapabilityMissing(
            f"an ensemble of {len(target.versions)} answers in one batch; this service runs "
            f"{services.settings.max_rows} rows at once (CHORUS_MAX_ROWS)",
            param="ensemble.members",
        )
    moved = await services.registry.move_alias(task, alias, target, expected=expected)
    return reply(AliasView.of(moved), headers={"etag": etag(moved.revision)})


@router.delete(
    "/v1/tasks/{task}/aliases/{alias}", summary="Delete an alias", status_code=204, openapi_extra=PRECONDITIONS
)
async def delete_alias(task: TaskPath, alias: AliasPath, services: ServicesDep, request: Request) -> Response:
    await services.registry.delete_alias(task, alias, expected=expected_revision(request.headers))
    return no_content()
