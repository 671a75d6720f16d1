"""Training jobs: submit, list, get, cancel, follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.auth.access import refused
from app.api.auth.account import NOBODY, account
from app.api.errors import detail_of
from app.api.replies import reply
from app.api.request_headers import EVENT_ID, IDEMPOTENCY_KEY, LAST_EVENT_ID, idempotency_key, last_event_id
from app.api.routes.tasks import Limit
from app.api.schemas.base import Page
from app.api.services import Services, ServicesDep
from app.api.sse import DONE, MEDIA_TYPE, PING, STREAMED, EventStream, event
from app.api.strict_route import StrictRoute
from app.telemetry import request_id
from app.training import Job, JobEvent, TrainRequest

router = APIRouter(route_class=StrictRoute, tags=["train"])
IdPath = Annotated[str, Path(max_length=80, description="A job's id.")]
AfterJob = Annotated[str | None, Query(max_length=80, description="Id of the last job of the page before.")]
AfterEvent = Annotated[str | None, Query(pattern=EVENT_ID, description="Id of the last event read.")]
_BEGINNING = "0"
_POLL_S = 0.3
_PING_S = 15.0


@router.post(
    "/v1/train",
    summary="Train a prompt",
    status_code=202,
    response_model=Job,
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
)
async def train(body: TrainRequest, services: ServicesDep, request: Request) -> Response:
    job = await _submit(services, body, idempotency_key(request.headers))
    current = account.get()
    if current is not None:
        current.facts.update(job=job.id, task=job.task)
    return reply(job, status=202, headers={"location": f"/v1/train/{job.id}"})


async def _submit(services: Services, body: TrainRequest, key: str | None) -> Job:
    """Within the caller's limits, which a repeated submission does not meet. Callers' idempotency keys are apart."""
    current = account.get()
    caller = current.caller if current is not None else NOBODY
    key = key if key is None or not caller.id else f"{caller.id}:{key}"
    async with services.access.limiter.place_for_job(caller, key) as place:
        if place.refusal is not None:
            known = None if key is None else await services.ask_jobs(partial(services.jobs.find_submitted, body, key))
            if known is None:
                raise refused(place.refusal)
            return known
        job, created = await services.ask_jobs(partial(services.jobs.submit, body, idempotency_key=key))
        if created:
            place.keep(job.id)
        return job


@router.get("/v1/train", summary="List jobs, newest first", response_model=Page[Job])
async def list_jobs(services: ServicesDep, after: AfterJob = None, limit: Limit = 100) -> Response:
    jobs, has_more = await services.ask_jobs(partial(services.jobs.list, after=after, limit=limit))
    return reply(Page[Job](data=list(jobs), has_more=has_more))


@router.get("/v1/train/{id}", summary="Get a job", response_model=Job)
async def get_job(id: IdPath, services: ServicesDep) -> Response:
    return reply(await services.ask_jobs(partial(services.jobs.get, id)))


@router.post(
    "/v1/train/{id}/cancel",
    summary="Cancel a job",
    description="A running job stops soon after. 409 once it has ended or begun to publish.",
    response_model=Job,
)
async def cancel_job(id: IdPath, services: ServicesDep) -> Response:
    return reply(await services.ask_jobs(partial(services.jobs.cancel, id)))


@router.get(
    "/v1/train/{id}/events",
    summary="A job's events, as a page or as a stream",
    description="With `Accept: text/event-stream` the events follow until the job ends; `Last-Event-ID` goes on.",
    response_model=Page[JobEvent],
    responses=STREAMED,
    openapi_extra={"parameters": [LAST_EVENT_ID]},
)
async def job_events(
    id: IdPath, services: ServicesDep, request: Request, after: AfterEvent = None, limit: Limit = 100
) -> Response:
    begin = last_event_id(request.headers) or after or _BEGINNING
    if MEDIA_TYPE in request.headers.get("accept", ""):
        await services.ask_jobs(partial(services.jobs.get, id))  # an unknown job is a 404, not an empty stream
        return EventStream(_follow(services, id, begin))
    found = await _events(services, id, begin, limit + 1)
    return reply(Page[JobEvent](data=list(found[:limit]), has_more=len(found) > limit))


async def _follow(services: Services, id: str, after: str) -> AsyncGenerator[bytes, None]:
    """Events until the job has ended and all were sent, or until this replica stops: a client then asks on."""
    quiet_s = 0.0
    try:
        while not services.drain.draining:
            job = await services.ask_jobs(partial(services.jobs.get, id))  # asked before the last events are read
            found = await _events(services, id, after, 1000)
            for one in found:
                yield event(one.model_dump(mode="json"), id=one.id, name=one.type)
            if job.ended and not found:
                yield DONE
                return
            if found:
                after, quiet_s = found[-1].id, 0.0
                continue
            quiet_s += _POLL_S
            if quiet_s >= _PING_S:
                quiet_s = 0.0
                yield PING
            await asyncio.sleep(_POLL_S)
    except Exception as error:
        yield event({"error": detail_of(error, request_id.get()).model_dump()}, name="error")


async def _events(services: Services, id: str, after: str, limit: int) -> Sequence[JobEvent]:
    return await services.ask_jobs(partial(services.jobs.events, id, after=after, limit=limit))
