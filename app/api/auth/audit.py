"""The audit log: who did what to which task, version or job, when, and with what outcome. JSON lines, only appended.

Each replica writes a file of its own, `logs/audit-<host>.jsonl` in the data folder, which Chorus never shortens; every
line opens it anew, so that it may be moved away at any time. It holds names and ids and no text that a user wrote.
Refusals of callers without a key are written at most `REFUSALS_PER_S` a second, and counted: nobody may fill the disk.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)
Mode = Literal["off", "changes", "all"]
REFUSALS_PER_S = 1.0
BURST = 20.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}([:@][A-Za-z0-9._-]{1,63})?\Z")
_ANSWERING = frozenset({"/v1/generate", "/v1/completions", "/v1/tasks/{ref}/generate"})
_REFUSED = frozenset({401, 403, 429})
_PARAMS = {"ref": "task", "model": "task", "number": "version", "id": "job", "name": "dataset"}


class AuditLog:
    """One for each process. A line that cannot be written is logged and lost: what was done is done."""

    def __init__(self, folder: Path, host: str, mode: Mode) -> None:
        self.path = folder / f"audit-{re.sub(r'[^A-Za-z0-9._-]', '_', host)}.jsonl"
        self._mode = mode
        self._refusals = BURST
        self._refused_at = time.monotonic()
        self._left_out = 0

    def wants(self, method: str, route: str, status: int) -> bool:
        """Whether a call is written: all; or changes, and what was refused."""
        if self._mode != "changes":
            return self._mode == "all"
        return status in _REFUSED or (method not in ("GET", "HEAD", "OPTIONS") and route not in _ANSWERING)

    def write(
        self,
        *,
        key: str | None,
        method: str,
        route: str,
        status: int,
        request_id: str,
        params: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """`key` is None for a caller who showed none that is known. `params` are those of the path."""
        left_out = 0
        if key is None:
            if not self._may_write():
                return
            left_out, self._left_out = self._left_out, 0
        now = time.time()
        named = {_PARAMS.get(name, name): str(value) for name, value in params.items() if _NAME.match(str(value))}
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z",
            "key": key,
            "call": f"{method} {route}",
            **named,
            **facts,
            "status": status,
            "outcome": "done" if status < 400 else "refused" if status < 500 else "failed",
            "request_id": request_id,
            **({"left_out": left_out} if left_out else {}),
        }
        self._append(json.dumps(line).encode() + b"\n")

    def _may_write(self) -> bool:
        now = time.monotonic()
        self._refusals = min(BURST, self._refusals + (now - self._refused_at) * REFUSALS_PER_S)
        self._refused_at = now
        if self._refusals < 1:
            self._left_out += 1
            return False
        self._refusals -= 1
        return True

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, flags, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError as error:
            log.error("audit line lost", extra={"why": error.strerror})
