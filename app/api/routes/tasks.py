"""The definitions of tasks: list, put, get, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from app.api.replies import no_content, reply
from app.api.schemas.base import Page
from app.api.schemas.tasks import TaskBody, TaskView
from app.api.services import Services, ServicesDep
from app.api.strict_route import StrictRoute
from prompt_store.models import TASK_NAME, Task

router = APIRouter(route_class=StrictRoute, tags=["tasks"])
TaskPath = Annotated[str, Path(pattern=TASK_NAME, description="A task's name.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most items of one page.")]
AfterName = Annotated[str | None, Query(max_length=63, description="Name of the last item of the page before.")]


@router.get("/v1/tasks", summary="List tasks", response_model=Page[TaskView])
async def list_tasks(services: ServicesDep, after: AfterName = None, limit: Limit = 100) -> Response:
    tasks, has_more = services.registry.tasks(after=after, limit=limit)
    return reply(Page[TaskView](data=[_view(services, task) for task in tasks], has_more=has_more))


@router.put(
    "/v1/tasks/{task}",
    summary="Create or change a task",
    response_model=TaskView,
    responses={201: {"model": TaskView, "description": "The task is new."}},
)
async def put_task(task: TaskPath, body: TaskBody, services: ServicesDep) -> Response:
    put, created = await services.registry.put_task(task, body.spec())
    return reply(_view(services, put), status=201 if created else 200)


@router.get("/v1/tasks/{task}", summary="Get a task", response_model=TaskView)
async def get_task(task: TaskPath, services: ServicesDep) -> Response:
    return reply(_view(services, services.registry.task(task)))


@router.delete("/v1/tasks/{task}", summary="Delete a task with its versions and aliases", status_code=204)
async def delete_task(task: TaskPath, services: ServicesDep) -> Response:
    await services.registry.delete_task(task)
    return no_content()


def _view(services: Services, task: Task) -> TaskView:
    return TaskView.of(task, services.registry.aliases(task.name))
