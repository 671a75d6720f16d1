"""One attempt at one job, from its plan to its version: read, train, evaluate, publish.

Runs in the trainer's process. It ends the job itself when it can say how it ended; when it only has to stop, it raises
Interrupted and leaves the rest to the worker.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import redis

from app.backbone import Backbone
from app.telemetry.tracing import Stages
from app.training.checkpoints import Checkpoints
from app.training.connection import is_outage
from app.training.contest import Contest
from app.training.cotraining import MICRO_TOKENS, CoTrainer
from app.training.data import Example, RowSet
from app.training.datasets import DatasetStore, PinnedData
from app.training.evaluate import Evaluator
from app.training.examples import Encoded, Encoder, split_rows
from app.training.gradients import Fill
from app.training.job import JobResult, Status
from app.training.memory import Budget, make_budget
from app.training.methods import METHODS, SearchedMethod
from app.training.plan import Plan
from app.training.preparing import Preparation
from app.training.publishing import Publisher, Trained, Verdict, join
from app.training.records import JobRecords, job_folder
from app.training.reporter import Reporter
from app.training.schedule import Schedule
from app.training.searching import Search
from app.training.sources import read_version
from app.training.surroundings import SAMPLE_ROWS
from app.training.trainer import Interrupted, Outcome, Trainer
from prompt_store import PromptStore, StorageFailed, StoreUnavailable

T = TypeVar("T")

PATIENCE_S, RETRY_S = 60.0, 0.5
"""How long to wait for a Redis that is away before leaving the job to a later attempt, and how often to ask.
For room on a full disk the wait is as long, but then the job fails: a later attempt would come to the same end."""

STAGES: dict[Status, str] = {"evaluating": "evaluate", "publishing": "publish"}
"""What traces call the time after a job has moved there."""

SMALL_SPLIT, LARGE_SPLIT, SMALL_SET = 0.2, 0.1, 500
MAX_DEV_ROWS = 2000
"""Rows held back where no validation data is given: a fifth of a small set, a tenth of a larger one, this at most."""


class Lost(Exception):
    """Another attempt holds the job now, or the job has ended; this one has nothing left to say."""


@dataclass(frozen=True)
class Context:
    """What an attempt works with. `fill` computes gradients with other processes, where there are any."""

    records: JobRecords
    store: PromptStore
    datasets: DatasetStore
    backbone: Backbone
    data_dir: Path
    max_context: int
    checkpoint_s: float
    stop: threading.Event
    fill: Fill | None = None


class Session:
    """One attempt. Raises what goes wrong, Interrupted while it is made, too; `run.py` makes the job's end of it."""

    def __init__(self, context: Context, job_id: str, attempt: int) -> None:
        self._context = context
        self._job_id = job_id
        self._attempt = attempt
        self._plan: Plan = self._patiently(lambda: context.records.plan(job_id))
        self._method = METHODS[self._plan.method.type]
        self._stages = Stages()

    def run(self) -> None:
        """Raises Interrupted, Lost, or an error of the service or the store."""
        self._stages.begin("train")
        try:
            self._run()
        except BaseException as error:
            self._stages.end(error)
            raise
        self._stages.end()

    def _run(self) -> None:
        train, dev, split = self._examples()
        context = self._context
        prepare = Preparation(
            context.backbone, context.store, context.max_context, context.stop, train, self._patiently
        )
        if self._plan.members:
            self._sweep(prepare, dev, split)
            return
        encoder = prepare.encoder(self._plan)
        encoded = prepare.encode(encoder)
        schedule = prepare.schedule(self._plan, len(encoded))
        if isinstance(self._method, SearchedMethod):
            schedule = replace(schedule, steps=self._method.evaluations(self._plan.method), epochs=0.0)
        reporter = self._reporter(schedule, len(encoded))
        self._warn_of_cuts(reporter, encoder, encoded)
        evaluator = prepare.evaluator(self._plan, encoder)
        if isinstance(self._method, SearchedMethod):
            peak_rate = 0.0
            outcome, evaluator = self._search(self._method, schedule, evaluator, train, dev, reporter)
            schedule = replace(schedule, num_virtual_tokens=evaluator.encoder.template.num_virtual_tokens)
        else:
            trainer = self._trainer(prepare, schedule, evaluator, encoded, dev, reporter)
            peak_rate = trainer.peak_rate
            reporter.chose(schedule.describe(peak_rate))
            outcome = trainer.run()
        self._move("evaluating")
        publisher = self._publisher(self._plan, evaluator)
        trained = self._patiently(
            lambda: publisher.describe(outcome, schedule, peak_rate, train=train, dev=dev, split=split)
        )
        reporter.measured(trained.metrics)
        self._move("publishing")
        self._finish(publisher, [trained])

    def _sweep(self, prepare: Preparation, dev: list[Example], split: str) -> None:
        """Many runs in place of one; the best of them are published, together or not at all."""
        keep = self._plan.publish.top_k or 1
        first = prepare.schedule(self._plan, len(prepare.train))
        reporter = self._reporter(first, len(prepare.train))
        told = first.describe(0.0)
        reporter.chose({name: told[name] for name in ("n_epochs", "batch_size", "steps")})
        contest = Contest(self._plan, prepare, dev, reporter, keep=keep)
        self._cotrainer(contest, reporter).run()
        best = contest.best(keep)
        reporter.settled(f"{best[0].name} has won", member=best[0].number)
        reporter.chose(best[0].schedule.describe(best[0].run.peak_rate))
        self._move("evaluating")
        trained = []
        for one in best:
            about = {"member": one.number, "settings": one.member.settings}
            if one is best[0]:
                about["sweep"] = contest.table(best)
            describe = partial(
                self._publisher(one.plan, one.evaluator).describe,
                replace(one.run.outcome, details={**one.run.outcome.details, **about}),
                one.schedule,
                one.run.peak_rate,
                train=prepare.train,
                dev=dev,
                split=split,
            )
            trained.append(self._patiently(describe))
        trained, together = join(trained)
        reporter.measured(trained[0].metrics | {"member": best[0].number} | together)
        self._move("publishing")
        self._finish(self._publisher(best[0].plan, best[0].evaluator), trained)

    def _cotrainer(self, contest: Contest, reporter: Reporter) -> CoTrainer:
        context = self._context
        return CoTrainer(
            context.backbone,
            contest.runs,
            watcher=reporter,
            checkpoints=self._checkpoints(contest.identity),
            checkpoint_s=context.checkpoint_s,
            prune=contest.prune,
            budget=self._budget(contest.longest),
            fill=context.fill,
        )

    def _publisher(self, plan: Plan, evaluator: Evaluator) -> Publisher:
        context = self._context
        return Publisher(context.store, context.backbone, plan, evaluator, job_id=self._job_id, attempt=self._attempt)

    def _examples(self) -> tuple[list[Example], list[Example], str]:
        """(training, dev, name of the dev split)."""
        rows = self._read(self._plan.training)
        if self._plan.validation is not None:
            return list(rows.examples), list(self._read(self._plan.validation).examples), "validation"
        count = len(rows.examples)
        share = self._plan.split
        if share is None:
            share = min(SMALL_SPLIT if count < SMALL_SET else LARGE_SPLIT, MAX_DEV_ROWS / count)
        train, dev = split_rows(rows.examples, share, seed=0)
        return (train, dev, "dev") if dev else (train, train, "train")

    def _read(self, pinned: PinnedData) -> RowSet:
        return self._patiently(lambda: self._context.datasets.read(pinned))

    def _search(
        self,
        method: SearchedMethod,
        schedule: Schedule,
        evaluator: Evaluator,
        train: list[Example],
        dev: list[Example],
        reporter: Reporter,
    ) -> tuple[Outcome, Evaluator]:
        """What was found, and the evaluator that reads it."""
        context = self._context
        reporter.chose(schedule.describe(0.0))
        search = Search(
            method,
            self._plan.method,
            evaluator.encoder.template,
            train,
            dev,
            evaluator,
            listener=reporter,
            checkpoints=self._checkpoints(),
            checkpoint_s=context.checkpoint_s,
            read=lambda name: self._patiently(lambda: read_version(context.store, context.backbone, name)),
        )
        outcome, found = search.run()
        reporter.settled(f"the best found: {found.source}")
        encoder = evaluator.encoder
        encoder = replace(encoder, template=found.template, bos=found.bos or encoder.bos)
        return outcome, replace(evaluator, encoder=encoder)

    def _trainer(
        self,
        prepare: Preparation,
        schedule: Schedule,
        evaluator: Evaluator,
        encoded: list[Encoded],
        dev: list[Example],
        reporter: Reporter,
    ) -> Trainer:
        context, encoder = self._context, evaluator.encoder
        settled, learner = self._patiently(lambda: prepare.begin(self._plan, schedule, encoder, encoded))
        if settled != self._plan.method:
            self._plan = self._plan.model_copy(update={"method": settled})
            reporter.settled(f"the method is settled: {settled.model_dump_json(exclude_none=True)}")
        return Trainer(
            context.backbone,
            learner,
            encoded,
            encoder.verbalizer,
            schedule,
            judge=evaluator.quick_judge(dev),
            listener=reporter,
            checkpoints=self._checkpoints(),
            checkpoint_s=context.checkpoint_s,
            budget=self._budget(max(one.length for one in encoded)),
            fill=context.fill,
        )

    def _budget(self, longest: int) -> Budget:
        wanted = self._plan.hyperparameters.gradient_checkpointing
        return make_budget(self._context.backbone, wanted, tokens=MICRO_TOKENS, longest=longest)

    def _checkpoints(self, more: str = "") -> Checkpoints:
        """Of this plan and this backbone alone, and of whatever `more` tells."""
        context = self._context
        identity = f"{self._plan.model_dump_json()}{context.backbone.fingerprint}{more}".encode()
        folder = job_folder(context.data_dir, self._job_id)
        return Checkpoints(folder, attempt=self._attempt, identity=hashlib.sha256(identity).hexdigest())

    def _reporter(self, schedule: Schedule, rows: int) -> Reporter:
        return Reporter(
            self._context.records,
            self._job_id,
            self._attempt,
            total=schedule.steps,
            per_epoch=-(-rows // schedule.batch_size),
            metric=self._plan.spec.metric,
            stop=self._context.stop,
        )

    def _warn_of_cuts(self, reporter: Reporter, encoder: Encoder, encoded: list[Encoded]) -> None:
        limit = encoder.max_tokens
        sample = [one for one in encoded[:SAMPLE_ROWS] if one.length >= limit - 32]
        cut = sum(encoder.is_cut(one) for one in sample)
        if cut:
            reporter.warned(f"{cut} of {len(encoded[:SAMPLE_ROWS])} inputs are cut to the context of {limit} tokens")

    def _move(self, to: Status) -> None:
        """Raises Interrupted if a cancel was asked for, Lost if the job is no longer this attempt's."""
        reply = self._patiently(
            lambda: self._context.records.move(self._job_id, to, attempt=self._attempt, unless_cancelled=True)
        )
        if reply == "cancel" or (reply != "moved" and self._context.stop.is_set()):
            raise Interrupted
        if reply != "moved":
            raise Lost(reply)
        self._stages.begin(STAGES[to])

    def _finish(self, publisher: Publisher, trained: Sequence[Trained]) -> None:
        result, verdict = self._publish(publisher, trained)
        reply = self._patiently(
            lambda: self._context.records.move(
                self._job_id, "succeeded", attempt=self._attempt, result=result, **_compared(verdict)
            )
        )
        if reply != "moved":
            raise Lost(reply)

    def _publish(self, publisher: Publisher, trained: Sequence[Trained]) -> tuple[JobResult, Verdict]:
        """What was committed is a version, also where the disk failed between the commit and its record file."""
        try:
            return self._patiently(lambda: publisher.publish(*trained))
        except StorageFailed:
            versions = self._patiently(lambda: self._context.store.find_publications(self._job_id))
            if not versions:
                raise
            return JobResult.of(versions), Verdict(promote=False)

    def _patiently(self, call: Callable[[], T]) -> T:
        """The call's result, asked for again while Redis is away or refuses, or the disk does. Every call made so may
        be repeated without harm. Raises Interrupted, StorageFailed."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except (StoreUnavailable, redis.RedisError) as error:
                if not isinstance(error, StoreUnavailable) and not is_outage(error):
                    raise
                if self._context.stop.is_set():
                    raise Interrupted from None
                if time.monotonic() > deadline:
                    if isinstance(error, StorageFailed):
                        raise
                    raise Interrupted from None
                time.sleep(RETRY_S)


def _compared(verdict: Verdict) -> dict[str, Any]:
    if not verdict.compared:
        return {}
    told = verdict.comparison
    return {"compared_with": told.pop("version"), **{f"compared_{name}": value for name, value in told.items()}}
