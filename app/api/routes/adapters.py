"""Prompts that were not learned here: a PEFT adapter or a template becomes a version; and a version an adapter."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Response

from app.api.replies import reply
from app.api.routes.tasks import TaskPath
from app.api.routes.versions import NumberPath
from app.api.schemas.adapters import AdapterBody, AdapterView
from app.api.schemas.tasks import VersionView
from app.api.services import ServicesDep
from app.api.strict_route import StrictRoute
from app.errors import InvalidRequest
from app.interchange.adapter_files import AdapterFiles
from app.interchange.drafting import Wanted, Wording

router = APIRouter(route_class=StrictRoute, tags=["versions"])


@router.post(
    "/v1/tasks/{task}/versions",
    summary="Import a PEFT adapter or a hand-written prompt as a version",
    description=(
        "An adapter of prompt tuning, P-tuning, prefix tuning or multitask prompt tuning of decoders and "
        "encoder-decoders; or, without `adapter_config` and `adapter_model`, a template without slots, which any "
        "model answers with as it is. Checked against the backbone, asked a few texts, and published in one step; "
        "the version's `provenance` says where it came from."
    ),
    status_code=201,
    response_model=VersionView,
)
async def publish_version(task: TaskPath, body: AdapterBody, services: ServicesDep) -> Response:
    files = await to_thread.run_sync(_given, body)
    wanted = Wanted(task, files, body.task_index, body.alias, body.create_task)
    version = await services.interchange.take_in(wanted)
    view = VersionView.of(version, services.registry.aliases(task))
    return reply(view, status=201, headers={"location": f"/v1/tasks/{task}/versions/{version.number}"})


def _given(body: AdapterBody) -> AdapterFiles | Wording:
    """Raises InvalidRequest where half of an adapter is given, or nothing; InvalidPrompt as `model_bytes` does."""
    if body.adapter_config is not None:
        return AdapterFiles(body.adapter_config, body.model_bytes(), body.template, body.verbalizer)
    if body.adapter_model is not None:
        raise InvalidRequest("an adapter is both its files: `adapter_config` is missing", param="adapter_config")
    if body.template is None:
        raise InvalidRequest("an adapter or the `template` of a hand-written prompt is wanted", param="template")
    if body.task_index is not None:
        raise InvalidRequest("only a multitask prompt has tasks to choose from", param="task_index")
    return Wording(body.template, body.verbalizer)


@router.get(
    "/v1/tasks/{task}/versions/{number}/adapter",
    summary="Export a version as a PEFT adapter",
    description="422 `capability_missing` says what PEFT has no form for.",
    response_model=AdapterView,
)
async def export_adapter(task: TaskPath, number: NumberPath, services: ServicesDep) -> Response:
    files = await services.interchange.give_out(task, number)
    return reply(await to_thread.run_sync(AdapterView.of, files))
