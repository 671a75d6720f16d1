"""Data sets for training, uploaded as the raw bytes of a JSONL or CSV file."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.faults import UnsupportedMediaType
from app.api.replies import reply
from app.api.routes.tasks import AfterName, Limit
from app.api.schemas.base import Page
from app.api.services import ServicesDep
from app.training import Dataset
from prompt_store.models import TASK_NAME

router = APIRouter(tags=["datasets"])
DatasetPath = Annotated[str, Path(pattern=TASK_NAME, description="A data set's name.")]
_TYPES = {
    "application/jsonl": "JSON Lines",
    "application/x-ndjson": "JSON Lines",
    "application/x-jsonlines": "JSON Lines",
    "text/csv": "CSV with a head line",
    "application/octet-stream": "either, found out from the bytes",
}
_BODY = {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _TYPES}, "required": True}


@router.put(
    "/v1/datasets/{name}",
    summary="Upload a data set",
    description="Content-addressed: the same bytes have the same digest. What is wrong is named with its row.",
    response_model=Dataset,
    openapi_extra={"requestBody": _BODY},
)
async def put_dataset(name: DatasetPath, services: ServicesDep, request: Request) -> Response:
    media = request.headers.get("content-type", "").partition(";")[0].strip(" \t").lower()
    if media not in _TYPES:
        raise UnsupportedMediaType("send the file itself, as one of " + ", ".join(_TYPES), param="content-type")
    data = await request.body()
    return reply(await services.ask_jobs(partial(services.datasets.put, name, data, media)))


@router.get("/v1/datasets", summary="List data sets", response_model=Page[Dataset])
async def list_datasets(services: ServicesDep, after: AfterName = None, limit: Limit = 100) -> Response:
    found, has_more = await services.ask_jobs(partial(services.datasets.list, after=after, limit=limit))
    return reply(Page[Dataset](data=list(found), has_more=has_more))


@router.get("/v1/datasets/{name}", summary="Get a data set's description", response_model=Dataset)
async def get_dataset(name: DatasetPath, services: ServicesDep) -> Response:
    return reply(await services.ask_jobs(partial(services.datasets.get, name)))
