"""What the routes work with: one frozen bundle, made by `app.main`, reached through `ServicesDep`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict

from app.api.auth import Access
from app.api.calibration import Calibrator
from app.api.drain import Drain
from app.api.pinning import Draws
from app.api.readiness import Readiness
from app.registry import Registry
from app.settings import Settings
from app.telemetry import Metrics

if TYPE_CHECKING:
    from app.engine import EngineService
    from app.interchange.importing import Interchange
    from app.training import DatasetStore, JobStore

T = TypeVar("T")
JOB_THREADS = 16


class BackboneFacts(BaseModel):
    """What callers may know of the frozen model."""

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    family: str
    dtype: str
    device: str
    runner: str


@dataclass(frozen=True)
class Services:
    settings: Settings
    registry: Registry
    engine: EngineService
    jobs: JobStore
    datasets: DatasetStore
    backbone: BackboneFacts
    drain: Drain
    readiness: Readiness
    metrics: Metrics
    calibrator: Calibrator
    interchange: Interchange
    access: Access
    draws: Draws = field(default_factory=Draws)
    host: str = field(default_factory=socket.gethostname)
    started_at: float = field(default_factory=time.monotonic)
    job_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(JOB_THREADS))

    async def ask_jobs(self, call: Callable[[], T]) -> T:
        """Call the store of jobs or data sets on a thread that nothing else waits for: not even when Redis hangs may
        bodies, which are read on the other threads, wait for it."""
        return await to_thread.run_sync(call, limiter=self.job_threads)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
