"""`POST /v1/tasks/{ref}/generate` and `POST /v1/generate`: rows in, answers out, or one row as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from app.api.errors import detail_of
from app.api.generation import answer_each, answer_fan_out, answer_one, answer_rows, check_count, stream_one
from app.api.outputs import finish_reason_of, total_usage
from app.api.pinning import pin_or_error, pin_row
from app.api.relay import Relay
from app.api.replies import reply
from app.api.schemas.generate import GenerateAnswer, GenerateBody, MixedAnswer, MixedBody, Output
from app.api.services import Services, ServicesDep
from app.api.sse import DONE, STREAMED, EventStream, connected, event
from app.api.strict_route import StrictRoute
from app.telemetry import request_id
from app.telemetry.ids import new_id

router = APIRouter(route_class=StrictRoute, tags=["generate"])
RefPath = Annotated[str, Path(max_length=140, description="`task`, `task@version` or `task:alias`.")]


@router.post(
    "/v1/tasks/{ref}/generate",
    summary="Answer one or many inputs of one task",
    response_model=GenerateAnswer,
    responses=STREAMED,
)
async def generate(ref: RefPath, body: GenerateBody, services: ServicesDep, request: Request) -> Response:
    if body.stream:
        return await connected(request, _stream(services, ref, body))
    outputs = await connected(request, _answer(services, ref, body))
    usage = total_usage(outputs)
    return reply(GenerateAnswer(id=new_id("gen-"), task=outputs[0].task, outputs=outputs, usage=usage))


@router.post(
    "/v1/generate",
    summary="Answer rows of any tasks, or one input for many tasks",
    response_model=MixedAnswer,
)
async def generate_mixed(body: MixedBody, services: ServicesDep, request: Request) -> Response:
    if body.requests is not None:
        outputs = await connected(request, answer_rows(services, body.requests))
    else:
        tasks, given = body.fan_out()
        outputs = await connected(request, answer_fan_out(services, tasks, given, body))
    return reply(MixedAnswer(id=new_id("gen-"), outputs=outputs, usage=total_usage(outputs)))


async def _answer(services: Services, ref: str, body: GenerateBody) -> list[Output]:
    """A single input fails as a whole; of several inputs each fails for itself."""
    resolved = await services.registry.resolve(ref)
    if body.input is not None:
        return [await answer_one(services, pin_row(services.draws, resolved, body.input, body))]
    inputs = body.inputs or []
    check_count(services, len(inputs), "inputs")
    rows = [pin_or_error(services.draws, resolved, given, body) for given in inputs]
    return await answer_each(services, [ref] * len(rows), rows)


async def _stream(services: Services, ref: str, body: GenerateBody) -> EventStream:
    """Wait for the first event, so that what fails before it is a plain HTTP error."""
    assert body.input is not None
    row = pin_row(services.draws, await services.registry.resolve(ref), body.input, body)
    outputs = Relay(stream_one(services, row))
    try:
        first = await anext(outputs)
    except BaseException:
        await outputs.aclose()
        raise
    headers = {
        "x-chorus-version": ",".join(f"{one.task}@{one.version}" for one in row.members),
        "x-chorus-digest": ",".join(one.digest for one in row.members),
    }
    return EventStream(_events(first, outputs), headers)


async def _events(first: Output, rest: Relay[Output]) -> AsyncGenerator[bytes, None]:
    try:
        yield event(_chunk(first))
        async for output in rest:
            yield event(_chunk(output))
    except Exception as error:
        detail = detail_of(error, request_id.get())
        yield event({"index": 0, "finish_reason": finish_reason_of(error), "error": detail.model_dump()})
    finally:
        await rest.aclose()
    yield DONE


def _chunk(output: Output) -> dict[str, Any]:
    """`{"index", "text"}`; the last chunk says all that the answer of a request without a stream says."""
    if not output.finish_reason:
        return {"index": 0, "text": output.text}
    return {"index": 0, **output.model_dump(exclude={"error"})}
