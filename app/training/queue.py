"""RQ, used as a lease and nothing more: which worker looks at which job next. The record (`records.py`) is the truth.

What RQ's defaults get wrong for long jobs is set here: the JSON serializer (pickle would let whoever writes to Redis
run code in the worker), only the job's id as argument, no job timeout (180 s by default), no result kept.
An entry's id is the job's id, so that asking whether a job has its place in the queue is one look-up.
"""

from __future__ import annotations

from typing import Any

import redis
from rq import Queue
from rq.serializers import JSONSerializer

QUEUE_NAME = "chorus-train"

QUEUE_FACTS = {"messaging.system": "redis", "messaging.destination.name": QUEUE_NAME}
"""What traces say of it."""

RUN = "app.training.worker.run_entry"
"""What an entry names as its function. Workers never import it by this name: they override `execute_job`."""

ENTRY_LIFE_S = 24 * 3600
"""How long RQ keeps what it thinks of an entry whose worker died. Only bookkeeping: the record decides."""


def open_queue(client: redis.Redis) -> Queue:
    return Queue(QUEUE_NAME, connection=client, serializer=JSONSerializer, default_timeout=-1)


class Dispatcher:
    """Puts jobs on the queue. Putting one there twice is harmless: the second claim finds it taken."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._queue = open_queue(client)

    def put(self, job_id: str) -> None:
        """Give the job a place in the queue, unless it has one."""
        if self.position(job_id) is not None:
            return
        self.remove(job_id)  # what is left of it if a worker died with it in hand
        self._queue.enqueue_call(
            RUN,
            args=(job_id,),
            job_id=job_id,
            timeout=-1,
            result_ttl=0,
            failure_ttl=ENTRY_LIFE_S,
            description=f"train {job_id}",
        )

    def remove(self, job_id: str) -> None:
        """Forget all that RQ knows about a job."""
        self._queue.intermediate_queue.remove(job_id)
        entry = self._queue.fetch_job(job_id)
        if entry is not None:
            entry.delete()

    def position(self, job_id: str) -> int | None:
        """How many jobs wait before this one; None if it has no place."""
        found: Any = self._client.lpos(self._queue.key, job_id)
        return None if found is None else int(found)
