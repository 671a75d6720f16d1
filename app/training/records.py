"""The truth about jobs, in Redis: records, transitions by compare-and-set, events. Knows no queue, no data, no tensors.

Workers and trainers use this directly; the API uses `JobStore` (`jobs.py`), which is built on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import redis

from app.errors import IdempotencyConflict, JobEnded, JobNotFound
from app.training import keys, scripts
from app.training.job import ENDED, FOLLOWS, JOB_ID, EventType, Job, JobError, JobEvent, JobResult, Progress, Status

if TYPE_CHECKING:
    from app.training.plan import Plan

IDEMPOTENCY_S = 24 * 3600
"""How long an `Idempotency-Key` is remembered."""

GIVE_UP_AFTER = 5
"""Lost claims in a row without a newer checkpoint after which a job fails."""

MAX_BLOCK_MS = 5_000

Held = Literal["held", "cancel", "lost"]


def event_json(kind: EventType, message: str, **data: Any) -> str:
    return json.dumps({"type": kind, "message": message, "data": data}, allow_nan=False)


class JobRecords:
    """All reads and writes of job records. Safe to use from several threads."""

    def __init__(self, client: redis.Redis, *, lease_s: float) -> None:
        self._client = client
        self._lease_ms = int(lease_s * 1000)
        register = client.register_script
        self._create = register(scripts.CREATE)
        self._move = register(scripts.MOVE)
        self._claim = register(scripts.CLAIM)
        self._beat = register(scripts.BEAT)
        self._report = register(scripts.REPORT)
        self._cancel = register(scripts.CANCEL)
        self._take_back = register(scripts.TAKE_BACK)
        self._overdue = register(scripts.OVERDUE)

    # What the API does

    def create(
        self,
        job_id: str,
        plan: Plan,
        data: Mapping[str, Any],
        *,
        idempotency: tuple[str, str] | None,
        trace: str | None = None,
    ) -> tuple[str, bool]:
        """Create the record in `validating`. `idempotency`: digests of the key and of the body; `trace`: the span
        that submits it.

        Returns the job's id and whether it is new. Raises IdempotencyConflict for the same key with another body.
        """
        key, body = idempotency or ("", "")
        reply = self._create(
            keys=[
                *(keys.job(job_id), keys.events(job_id), keys.JOBS, keys.LIVE),
                *(keys.JOB_NUMBER, keys.idempotency(key)),
            ],
            args=[job_id, plan.model_dump_json(), json.dumps(dict(data)), _status_event("validating")]
            + [body, IDEMPOTENCY_S, trace or ""],
        )
        outcome, found = (_text(part) for part in cast(list[bytes], reply))
        if outcome == "conflict":
            raise IdempotencyConflict(f"this Idempotency-Key belongs to {found}, which has another body")
        return found, outcome == "created"

    def find_idempotent(self, key: str, body: str) -> str | None:
        """The job a key stands for, None if it is new. Raises IdempotencyConflict for another body."""
        known = cast(list[bytes | None], self._client.hmget(keys.idempotency(key), ["id", "body"]))
        if known[0] is None:
            return None
        if known[1] != body.encode():
            raise IdempotencyConflict(f"this Idempotency-Key belongs to {_text(known[0])}, which has another body")
        return _text(known[0])

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return _job(self._hash(job_id))

    def trace(self, job_id: str) -> str | None:
        """The span that submitted the job, if it was traced."""
        self._check_id(job_id)
        found = cast("bytes | None", self._client.hget(keys.job(job_id), "trace"))
        return None if found is None else found.decode(errors="replace")

    def plan(self, job_id: str) -> Plan:
        """What the job is to do. Raises JobNotFound."""
        from app.training.plan import Plan  # with torch, which those who only move jobs do without

        return Plan.model_validate_json(self._hash(job_id)["plan"])

    def list(self, *, after: str | None = None, limit: int = 100) -> tuple[Sequence[Job], bool]:
        """Jobs, newest first, from behind the job `after`. Raises JobNotFound for an unknown `after`."""
        newest: float | str = "+inf"
        if after is not None:
            newest = f"({self._hash(after)['number']}"
        found = cast("Sequence[bytes]", self._client.zrevrangebyscore(keys.JOBS, newest, "-inf", 0, limit + 1))
        jobs = tuple(self.get(_text(job_id)) for job_id in found[:limit])
        return jobs, len(found) > limit

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once; ask the worker of a running one. Raises JobNotFound, JobEnded."""
        self._check_id(job_id)
        outcome = self._call(
            self._cancel,
            job_id,
            [job_id, self._lease_ms, _status_event("cancelled"), event_json("message", "cancel requested")],
        )
        if outcome == "missing":
            raise _not_found(job_id)
        if outcome == "publishing":
            raise JobEnded("the job is publishing its version and can no longer be cancelled", param="id")
        if outcome in ENDED:
            raise JobEnded(f"the job is already {outcome}", param="id")
        return self.get(job_id)

    def events(
        self, job_id: str, *, after: str = "0", limit: int = 1000, block_ms: int | None = None
    ) -> Sequence[JobEvent]:
        """Events after the id `after`, oldest first. With `block_ms`, wait that long for the first one."""
        self._check_id(job_id)
        if not self._client.exists(keys.job(job_id)):
            raise _not_found(job_id)
        block = None if not block_ms else min(block_ms, MAX_BLOCK_MS)
        reply = cast("list[Any]", self._client.xread({keys.events(job_id): after}, count=limit, block=block))
        return tuple(_event(entry_id, fields) for _, entries in reply for entry_id, fields in entries)

    def tell(self, job_id: str, event: str) -> None:
        """Add an event from outside a claim."""
        self._client.xadd(keys.events(job_id), {"at": int(self._now() * 1000), "event": event})

    # What the holder of a claim does

    def claim(self, job_id: str, worker: str) -> int:
        """Take a waiting job: its new attempt, or 0 if it does not wait."""
        event = _status_event("running", worker=worker)
        return int(self._claim(keys=[keys.job(job_id), keys.events(job_id)], args=[worker, event]))

    def beat(self, job_id: str, attempt: int) -> Held:
        """Say that the holder lives; learn whether to go on."""
        return cast(Held, _text(self._beat(keys=[keys.job(job_id)], args=[attempt])))

    def report(
        self,
        job_id: str,
        attempt: int,
        *,
        progress: Progress | None = None,
        metrics: Mapping[str, Any] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        checkpoint: int | None = None,
        event: str = "",
    ) -> Held:
        """Update what is seen of a running job; learn whether to go on."""
        fields: list[str | int] = []
        if progress is not None:
            fields += ["progress", progress.model_dump_json()]
        if metrics is not None:
            fields += ["metrics", json.dumps(dict(metrics), allow_nan=False)]
        if hyperparameters is not None:
            fields += ["hyperparameters", json.dumps(dict(hyperparameters), allow_nan=False)]
        if checkpoint is not None:
            fields += ["checkpoint", checkpoint]
        reply = self._report(keys=[keys.job(job_id), keys.events(job_id)], args=[attempt, event, *fields])
        return cast(Held, _text(reply))

    def move(
        self,
        job_id: str,
        to: Status,
        *,
        attempt: int | None,
        source: Status | None = None,
        unless_cancelled: bool = False,
        error: JobError | None = None,
        result: JobResult | None = None,
        **about: Any,
    ) -> str:
        """One transition, from `source` alone if it is given. Returns `moved`, or why not: `missing`, `fenced`,
        `cancel`, or the state it is in."""
        sources = source or ",".join(status for status, following in FOLLOWS.items() if to in following)
        fields: list[str] = []
        if error is not None:
            fields += ["error", error.model_dump_json()]
            about = {"code": error.code, "error": error.message} | about
        if result is not None:
            fields += ["result", result.model_dump_json()]
            about = result.model_dump() | about
        return self._call(
            self._move,
            job_id,
            [job_id, sources, "" if attempt is None else attempt, to, _status_event(to, **about)]
            + ["1" if unless_cancelled else "", "1" if to in ENDED else "", *fields],
        )

    # What keeps jobs from being lost

    def take_back(self, job_id: str, *, attempt: int | None, reason: str) -> str:
        """Requeue a job whose claim was lost. `attempt`: the holder itself gives up; None: only if the lease is silent.

        Returns `held` (nothing to do), `queued`, `cancelled`, or `exhausted`: lost too often without progress, and
        the caller must end it.
        """
        return self._call(
            self._take_back,
            job_id,
            [job_id, "" if attempt is None else attempt, self._lease_ms, GIVE_UP_AFTER]
            + [_status_event("queued", reason=reason), _status_event("cancelled")],
        )

    def overdue(self, job_id: str) -> bool:
        """Whether a waiting job should have been claimed by now. True for one caller in a lease's time."""
        return self._overdue(keys=[keys.job(job_id)], args=[self._lease_ms]) == 1

    def live(self) -> Sequence[str]:
        """Ids of all jobs that have not ended."""
        return sorted(_text(job_id) for job_id in cast(set[bytes], self._client.smembers(keys.LIVE)))

    def register_trainer(self, host: str, worker: str, *, ttl_s: float) -> None:
        """Say that a trainer computes on this host, for `ttl_s` seconds."""
        with self._client.pipeline() as pipeline:
            pipeline.zadd(keys.trainers(host), {worker: self._now() + ttl_s})
            pipeline.expire(keys.trainers(host), int(ttl_s) + 60)
            pipeline.execute()

    def unregister_trainer(self, host: str, worker: str) -> None:
        self._client.zrem(keys.trainers(host), worker)

    def active_trainers(self, host: str) -> int:
        """How many trainers compute on this host now."""
        return self._client.zcount(keys.trainers(host), self._now(), "+inf")

    def _now(self) -> float:
        seconds, micros = self._client.time()
        return seconds + micros / 1e6

    def _call(self, script: Any, job_id: str, args: Sequence[str | int]) -> str:
        return _text(script(keys=[keys.job(job_id), keys.events(job_id), keys.LIVE, keys.ENDED], args=list(args)))

    def _hash(self, job_id: str) -> dict[str, str]:
        self._check_id(job_id)
        found = cast(dict[bytes, bytes], self._client.hgetall(keys.job(job_id)))
        if not found:
            raise _not_found(job_id)
        return {name.decode(): value.decode() for name, value in found.items()}

    def _check_id(self, job_id: str) -> None:
        if not JOB_ID.fullmatch(job_id):
            raise _not_found(job_id)


def _not_found(job_id: str) -> JobNotFound:
    known = job_id if JOB_ID.fullmatch(job_id) else "of this id"  # what is no id is not repeated
    return JobNotFound(f"no job {known}", param="id")


def _status_event(status: Status, **data: Any) -> str:
    return event_json("status", status, **data)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _job(found: Mapping[str, str]) -> Job:
    plan: dict[str, Any] = json.loads(found["plan"])
    record: dict[str, Any] = {
        name: json.loads(found[name]) for name in ("progress", "metrics", "error", "result", "data") if name in found
    }
    used: dict[str, Any] = json.loads(found.get("hyperparameters", "{}"))
    for name in ("created", "updated", "started", "finished"):
        if name in found:
            record[f"{name}_at"] = int(found[name]) / 1000
    return Job(
        id=found["id"],
        status=cast(Status, found["status"]),
        task=plan["task"],
        attempt=int(found["attempt"]),
        cancel_requested=found.get("cancel") == "1",
        template=plan["template"],
        method=plan["method"],
        hyperparameters=plan["hyperparameters"] | used,
        publish=plan["publish"],
        metadata=plan["metadata"],
        members=[member["settings"] for member in plan.get("members", ())],
        **record,
    )


def _event(entry_id: bytes, fields: Mapping[bytes, bytes]) -> JobEvent:
    return JobEvent(id=_text(entry_id), at=int(fields[b"at"]) / 1000, **json.loads(fields[b"event"]))


def job_folder(data_dir: Path, job_id: str) -> Path:
    """Where a job's checkpoints lie. The id is ours, never a user's string."""
    assert JOB_ID.fullmatch(job_id)
    return data_dir / "jobs" / job_id
