"""What the training loop tells, written to the job's record: not too often, and never in the way of training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis

from app.training.connection import is_outage
from app.training.job import Progress
from app.training.records import JobRecords, event_json
from app.training.trainer import Judgement

REPORT_S = 1.0
"""Least time between two reports of progress."""

AWAY_S = 5.0
"""How long nothing is said after Redis was found away, or refused."""

STORIES = 200
"""Most progress events of one run; the record itself is updated with every report."""

log = logging.getLogger(__name__)


class Reporter:
    """The listener of one attempt. Redis may be away or refuse: reports are lost then, training goes on."""

    def __init__(
        self,
        records: JobRecords,
        job_id: str,
        attempt: int,
        *,
        total: int,
        per_epoch: int,
        metric: str,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._job_id = job_id
        self._attempt = attempt
        self._total = total
        self._per_epoch = per_epoch
        self._metric = metric
        self._stop = stop
        self._clock = clock
        self._metrics: dict[str, Any] = {}
        self._losses: list[float] = []
        self._first: tuple[float, int] | None = None
        self._last_report = -REPORT_S
        self._quiet_until = -AWAY_S
        self._last_story = 0

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def began(self, step: int) -> None:
        if self._attempt > 1:
            where = f"goes on behind step {step}" if step else "begins anew: no checkpoint is on this machine"
            self._report(
                event=event_json("message", f"attempt {self._attempt} {where}", attempt=self._attempt, step=step)
            )

    def chose(self, hyperparameters: Mapping[str, Any]) -> None:
        """What "auto" stands for in this run."""
        self._report(hyperparameters=hyperparameters)

    def settled(self, message: str, **data: Any) -> None:
        """A choice that only the trainer could make."""
        self._report(event=event_json("message", message, **data))

    def stepped(
        self,
        step: int,
        loss: float,
        best: Judgement | None,
        *,
        leader: int | None = None,
        learning: int | None = None,
    ) -> None:
        now = self._clock()
        self._first = self._first or (now, step)
        self._losses.append(loss)
        if now - self._last_report < REPORT_S and step < self._total:
            return
        progress = Progress(
            step=step,
            total=self._total,
            epoch=round(step / self._per_epoch, 3),
            loss=sum(self._losses) / len(self._losses),
            score=None if best is None else best.score,
            eta_s=self._eta(now, step),
            leader=leader,
            learning=learning,
        )
        story = ""
        if step - self._last_story >= self._total / STORIES:
            story = event_json("progress", f"step {step} of {self._total}", **progress.model_dump())
            self._last_story = step
        self._metrics["train_loss"] = progress.loss
        self._report(progress=progress, metrics=self._metrics, event=story)
        self._last_report, self._losses = now, []

    def evaluated(
        self, step: int, judgement: Judgement, *, best: bool, member: int | None = None, name: str = ""
    ) -> None:
        """`member`: of a sweep, its number and name; `best`: the best of all."""
        found = {"dev_loss": _finite(judgement.loss), self._metric: _finite(judgement.score)}
        if best:
            self._metrics |= found | {"best_step": step} | ({} if member is None else {"member": member})
        told = f"step {step}: {self._metric} {judgement.score:.4f}"
        about = {} if member is None else {"member": member}
        event = event_json("metrics", f"{name} {told}".strip(), step=step, best=best, **about, **found)
        self._report(metrics=self._metrics, event=event)

    def saved(self, step: int) -> None:
        self._report(checkpoint=step)

    def warned(self, message: str, *, logged: str | None = None) -> None:
        """`logged`: what the log says instead, where the message may quote a row."""
        log.warning("%s: %s", self._job_id, logged or message)
        self._report(event=event_json("warning", message))

    def measured(self, metrics: Mapping[str, Any]) -> None:
        """Figures of the final evaluation, beside those of the run."""
        self._metrics |= metrics
        self._report(metrics=self._metrics, event=event_json("metrics", "evaluated", **metrics))

    def _eta(self, now: float, step: int) -> float | None:
        assert self._first is not None
        since, first = self._first
        return None if step <= first else round((now - since) / (step - first) * (self._total - step), 1)

    def _report(self, **what: Any) -> None:
        if self._clock() < self._quiet_until:
            return
        try:
            held = self._records.report(self._job_id, self._attempt, **what)
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            self._quiet_until = self._clock() + AWAY_S
            return
        if held != "held":
            self._stop.set()


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
