"""Is it alive, is it ready, what runs here, and the metrics."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from app import __version__
from app.api.faults import NotReady
from app.api.replies import reply
from app.api.schemas.tasks import HealthView
from app.api.services import Services, ServicesDep
from app.telemetry.metrics import engine_readings

router = APIRouter(tags=["health"])


class ProbeView(BaseModel):
    status: str
    degraded: bool = False


@router.get("/livez", summary="The process answers and its engine is not stalled", response_model=ProbeView)
async def livez(services: ServicesDep) -> Response:
    if services.engine.stalled:
        raise NotReady("the engine is stalled; this process is about to end")
    return reply(ProbeView(status="alive"))


@router.get("/readyz", summary="The model answers: a real one-token run", response_model=ProbeView)
async def readyz(services: ServicesDep) -> Response:
    await services.readiness.check()
    return reply(ProbeView(status="ready", degraded=services.registry.degraded))


@router.get("/health", summary="What runs here and how it is", response_model=HealthView)
async def health(services: ServicesDep) -> Response:
    registry = services.registry
    return reply(
        HealthView(
            status=_status(services),
            version=__version__,
            backbone=services.backbone.model_dump(),
            engine=engine_readings(services.engine.stats()),
            registry={
                "epoch": registry.snapshot.epoch,
                "degraded": registry.degraded_code,
                "tasks": len(registry.snapshot.tasks),
                "versions": len(registry.snapshot.versions),
                "refused": [{"version": one.version, "code": one.code} for one in registry.refusals],
            },
            uptime_s=round(time.monotonic() - services.started_at, 1),
        )
    )


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDep) -> Response:
    return Response(services.metrics.exposition(), headers={"content-type": services.metrics.content_type})


def _status(services: Services) -> Literal["ok", "degraded", "draining"]:
    if services.drain.draining:
        return "draining"
    return "degraded" if services.registry.degraded else "ok"
