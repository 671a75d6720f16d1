"""A job whose loss is not finite, or whose vectors grow beyond what replicas load: it ends as that, publishes nothing,
and leaves what is served alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from app.backbone import load_prompt, prompt
from app.settings import Settings
from app.training import evaluate, gradients, run
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.session import Context
from prompt_store import PromptStore
from tests.training_data import short_request

NUMBERS = {"batch_size": 4, "n_epochs": 2, "num_virtual_tokens": 4}


def check_that_it_diverges(context: Context, jobs: JobStore, store: PromptStore, sweep: dict[str, Any] | None) -> None:
    """The next job, beside a first version that is there."""
    more = {} if sweep is None else {"sweep": sweep}
    job_id = jobs.submit(short_request(hyperparameters=NUMBERS, **more))[0].id
    number = context.records.claim(job_id, "here")
    settings = Settings.model_validate({"redis_url": "unix:///nothing"})
    assert run.train(settings, context.records, job_id, number, threading.Event()) == run.ENDED
    job = jobs.get(job_id)
    assert (job.status, job.result, job.error and job.error.code) == ("failed", None, "diverged")
    assert store.find_publication(job_id) is None
    assert [version.number for version in store.list_versions("mood")[0]] == [1]
    assert store.get_alias("mood", "prod").version == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sweep", [None, {"seed": [1, 2]}], ids=["one", "sweep"])
def test_job_whose_loss_is_never_finite_fails_as_diverged_and_publishes_nothing(
    attempt: Callable[..., Job],
    context: Context,
    jobs: JobStore,
    store: PromptStore,
    monkeypatch: pytest.MonkeyPatch,
    sweep: dict[str, Any] | None,
    bad: float,
) -> None:
    attempt()
    real = gradients.summed_loss

    def summed_loss(*of: Any) -> Tensor:
        return real(*of) * bad

    monkeypatch.setattr(gradients, "summed_loss", summed_loss)
    monkeypatch.setattr(run, "_context", lambda *_: context)
    check_that_it_diverges(context, jobs, store, sweep)


@pytest.mark.parametrize("sweep", [None, {"seed": [1, 2]}], ids=["one", "sweep"])
@pytest.mark.parametrize("judged", [True, False], ids=["seen by the judge", "seen before it is published"])
def test_job_whose_vectors_no_replica_would_load_fails_as_diverged_and_publishes_nothing(
    attempt: Callable[..., Job],
    context: Context,
    jobs: JobStore,
    store: PromptStore,
    monkeypatch: pytest.MonkeyPatch,
    sweep: dict[str, Any] | None,
    judged: bool,
) -> None:
    attempt()
    monkeypatch.setattr(run, "_context", lambda *_: context)
    monkeypatch.setattr(prompt, "_MAX_NORM_RATIO", 1e-3)
    if not judged:
        monkeypatch.setattr(evaluate, "refusal_of", lambda *_: "")
    check_that_it_diverges(context, jobs, store, sweep)


def test_job_whose_vectors_outgrow_what_replicas_load_publishes_an_earlier_step_that_they_load(
    attempt: Callable[..., Job], context: Context, jobs: JobStore, store: PromptStore
) -> None:
    numbers = NUMBERS | {"learning_rate": 10, "n_epochs": 10}
    job = attempt(hyperparameters=numbers)
    told = [event.message for event in jobs.events(job.id) if event.type == "warning"]
    assert "replicas would refuse this prompt, a vector of norm" in told[-1]
    version = store.get_version("mood", 1)
    assert load_prompt(version, store.load(version), context.backbone).version == 1
    assert job.status == "succeeded"
