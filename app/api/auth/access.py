"""All that decides about callers, made from the settings and kept fresh while the service runs."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.access import Caller, Directory, KeysUnavailable, Limiter, Refusal
from app.access.directory import REFRESH_S
from app.api.auth.audit import AuditLog
from app.api.auth.exposure import check_exposure
from app.api.faults import JobLimitReached, JobQuotaSpent, RateLimited, UnsafeExposure
from app.concurrency import running_beside
from app.settings import Settings
from app.training.keys import LIVE

log = logging.getLogger(__name__)
JOB_WAIT_S = 30.0


@dataclass(frozen=True)
class Access:
    directory: Directory
    limiter: Limiter
    audit: AuditLog

    async def admit(self, caller: Caller) -> None:
        """Raises RateLimited."""
        refusal = await self.limiter.admit(caller)
        if refusal is not None:
            raise refused(refusal)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Look for changed keys every second, until the block ends; then let go of Redis."""
        try:
            async with running_beside(self._follow(), "follow keys"):
                yield
        finally:
            await self.limiter.close()
            self.directory.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.to_thread(self.directory.refresh)
            except Exception as error:  # whatever it is, the keys must be followed on
                log.error("keys not followed", exc_info=error)


def open_access(settings: Settings) -> Access:
    """By the settings. Raises UnsafeExposure for an address beyond this machine without a key, or unreadable keys."""
    try:
        directory = Directory.open(settings)
    except KeysUnavailable as error:
        raise UnsafeExposure(f"{error}: mend it, or name another with CHORUS_KEYS_FILE", param="keys_file") from error
    try:
        check_exposure(settings, has_keys=directory.has_keys)
    except UnsafeExposure:
        directory.close()
        raise
    limiter = Limiter(settings.redis_url, live_jobs=LIVE)
    return Access(directory, limiter, AuditLog(settings.data_dir / "logs", socket.gethostname(), settings.audit))


def refused(refusal: Refusal) -> RateLimited | JobLimitReached | JobQuotaSpent:
    """A refusal as the error that callers see."""
    if refusal.what == "rate":
        return RateLimited("this key's limit for a minute is reached", retry_after_s=math.ceil(refusal.wait_s or 1.0))
    if refusal.what == "concurrent":
        return JobLimitReached("as many jobs of this key as may run at once have not ended", retry_after_s=JOB_WAIT_S)
    return JobQuotaSpent("this key has started as many jobs as it may in its life")
