"""`GET /v1/models` and `POST /v1/completions`, in the form that clients of OpenAI's API speak."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.api.errors import detail_of
from app.api.generation import answer_all, check_count, stream_one
from app.api.outputs import total_usage
from app.api.pinning import Pinned, pin_row
from app.api.relay import Relay
from app.api.replies import reply
from app.api.routes.generate import RefPath
from app.api.schemas.completions import Choice, Completion, CompletionBody, CompletionUsage, Model, ModelList
from app.api.schemas.generate import Options, Output, UsageBody
from app.api.services import Services, ServicesDep
from app.api.sse import DONE, STREAMED, EventStream, connected, event
from app.api.strict_route import StrictRoute
from app.errors import CapabilityMissing, InvalidRequest
from app.telemetry import request_id
from app.telemetry.ids import new_id
from prompt_store.models import PROD, Alias, Version

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt

router = APIRouter(route_class=StrictRoute, tags=["openai"])


@router.get("/v1/models", summary="Tasks as models", response_model=ModelList)
async def list_models(services: ServicesDep) -> Response:
    snapshot = services.registry.snapshot
    aliases = sorted(snapshot.aliases, key=lambda alias: (alias.task, alias.name != PROD, alias.name))
    return reply(
        ModelList(
            data=[
                _model(services, _ref(one), [snapshot.version(one.task, number) for number in one.versions])
                for one in aliases
            ]
        )
    )


@router.get("/v1/models/{model}", summary="One task as a model", response_model=Model)
async def get_model(model: RefPath, services: ServicesDep) -> Response:
    return reply(_model(services, model, services.registry.members(model)))


@router.post(
    "/v1/completions",
    summary="Answer prompts, in OpenAI's wire form",
    response_model=Completion,
    responses=STREAMED,
)
async def complete(body: CompletionBody, services: ServicesDep, request: Request) -> Response:
    refused = body.unsupported()
    if refused is not None:
        raise CapabilityMissing(f"{refused} is not supported with this value", param=refused)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    check_count(services, len(prompts), "prompt")
    if body.stream and len(prompts) > 1:
        raise CapabilityMissing("a stream takes one prompt", param="prompt")
    resolved = await services.registry.resolve(body.model)
    for member in resolved.members:
        _check_text_task(member)
    rows = [pin_row(services.draws, resolved, prompt, _options(body)) for prompt in prompts]
    if body.stream:
        return await connected(request, _stream(services, rows[0], body))
    return reply(await connected(request, _complete(services, rows, body)))


def _check_text_task(prompt: LoadedPrompt) -> None:
    if len(prompt.template.fields) != 1:
        raise InvalidRequest(
            f"{prompt.task} takes {len(prompt.template.fields)} fields, a completion has one text; "
            f"use POST /v1/tasks/{prompt.task}/generate",
            param="prompt",
        )


async def _complete(services: Services, rows: list[Pinned], body: CompletionBody) -> Completion:
    """All prompts or none: this wire form has no place for the failure of one."""
    outputs = await answer_all(services, rows)
    choices = [
        Choice(index=index, text=one.text or "", finish_reason=_reason(one)) for index, one in enumerate(outputs)
    ]
    return _completion(rows, body.model, choices, _usage(total_usage(outputs)))


async def _stream(services: Services, row: Pinned, body: CompletionBody) -> EventStream:
    outputs = Relay(stream_one(services, row))
    try:
        first = await anext(outputs)
    except BaseException:
        await outputs.aclose()
        raise
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    frame = _completion([row], body.model, [], None)
    return EventStream(_events(first, outputs, frame, with_usage=with_usage))


async def _events(
    first: Output, rest: Relay[Output], frame: Completion, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    usage: UsageBody | None = None
    try:
        yield _chunk(frame, first)
        usage = first.usage
        async for output in rest:
            usage = output.usage
            yield _chunk(frame, output)
        if with_usage and usage is not None:
            yield event(frame.model_copy(update={"usage": _usage(usage)}).model_dump())
    except Exception as error:
        yield event({"error": detail_of(error, request_id.get()).model_dump()})
    finally:
        await rest.aclose()
    yield DONE


def _chunk(frame: Completion, output: Output) -> bytes:
    choice = Choice(index=0, text=output.text or "", finish_reason=_reason(output))
    return event(frame.model_copy(update={"choices": [choice]}).model_dump())


def _completion(rows: list[Pinned], model: str, choices: list[Choice], usage: CompletionUsage | None) -> Completion:
    """`system_fingerprint` names every version that answers a row."""
    return Completion(
        id=new_id("cmpl-"),
        created=int(time.time()),
        model=model,
        system_fingerprint=",".join(dict.fromkeys(name for row in rows for name in row.fingerprints)),
        choices=choices,
        usage=usage,
    )


def _options(body: CompletionBody) -> Options:
    return Options(
        max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, stop=body.stop, seed=body.seed
    )


def _reason(output: Output) -> str | None:
    """The words this wire form has: a scored label is a text that came to its end."""
    return "stop" if output.finish_reason == "label" else output.finish_reason or None


def _usage(usage: UsageBody) -> CompletionUsage:
    return CompletionUsage(**usage.model_dump())


def _ref(alias: Alias) -> str:
    return alias.task if alias.name == PROD else f"{alias.task}:{alias.name}"


def _model(services: Services, ref: str, versions: Sequence[Version]) -> Model:
    """`root` names every version that answers for `ref`: `sentiment@3`, or `sentiment@3,4`."""
    return Model(
        id=ref,
        created=max(int(version.created_at) for version in versions),
        root=f"{versions[0].task}@" + ",".join(str(version.number) for version in versions),
        parent=services.backbone.name,
    )
