"""A sweep from its job to its versions: members learn together, losers stop, the best are published at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.backbone import Backbone
from app.errors import ContextTooLong
from app.settings import Settings
from app.training import publishing, run
from app.training.evaluate import Evaluator
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.preparing import Preparation
from app.training.records import JobRecords, job_folder
from app.training.runs import Run
from app.training.session import Context, Lost, Session
from app.training.supervision import Supervisor
from app.training.trainer import Interrupted
from prompt_store import AliasTarget, Ensemble, PromptStore
from tests.training_data import short_request

SEEDS = {"seed": [1, 2, 3, 4]}


def sweep_of(lists: dict[str, Any], *, steps: int = 8, **more: Any) -> dict[str, Any]:
    numbers = {"batch_size": 4, "n_epochs": steps / 4}
    if "num_virtual_tokens" not in lists:
        numbers["num_virtual_tokens"] = 4
    return {"sweep": lists, "hyperparameters": numbers, **more}


def states(job: Job) -> list[str]:
    assert job.result is not None
    assert job.result.sweep is not None
    return [row["state"] for row in job.result.sweep]


def test_sweep_publishes_its_winner_and_tells_of_all_members(attempt: Callable[..., Job], store: PromptStore) -> None:
    job = attempt(**sweep_of({"learning_rate": [0.01, "auto"], "seed": [1, 2]}))
    assert job.status == "succeeded", job.error
    assert job.result is not None
    assert (job.result.version, job.result.promoted, job.result.ensemble) == (1, True, None)
    assert job.members == [{"learning_rate": rate, "seed": seed} for rate in (0.01, "auto") for seed in (1, 2)]
    (version,) = store.list_versions("mood")[0]
    assert store.get_alias("mood", "prod").version == 1
    card = version.card[0]
    table = card.details["sweep"]
    assert tuple(table) == job.result.sweep
    assert [row["member"] for row in table] == [1, 2, 3, 4]
    assert sorted(row["state"] for row in table) == ["stopped", "stopped", "stopped", "won"]
    assert sorted((row["round"], row["steps"]) for row in table if row["state"] == "stopped") == [
        (1, 2),
        (1, 2),
        (2, 3),
    ]
    won = next(row for row in table if row["state"] == "won")
    assert (won["steps"], won["settings"]) == (6, card.details["settings"])
    assert card.details["member"] == won["member"] == job.metrics["member"]
    assert version.meta.provenance["seed"] == won["settings"]["seed"]
    assert all(won["score"] >= row["score"] for row in table)
    assert job.hyperparameters["seed"] == won["settings"]["seed"]


def test_winner_is_what_its_configuration_learns_alone(attempt: Callable[..., Job], store: PromptStore) -> None:
    """Without halving; the batches of both have the same rows, so only the order of sums differs."""
    lists = {"num_virtual_tokens": [3, 6], "seed": [1, 2], "halving": False}
    job = attempt(**sweep_of(lists, validation_data={"inline": short_request().training_data.inline}))
    assert job.result is not None
    assert sorted(states(job)) == ["finished", "finished", "finished", "won"]
    together = store.get_version("mood", 1)
    settings = together.card[0].details["settings"]
    alone = attempt(
        task="alone",
        hyperparameters={"batch_size": 4, "n_epochs": 2, **settings},
        validation_data={"inline": short_request().training_data.inline},
    )
    assert alone.result is not None
    version = store.get_version("alone", 1)
    assert version.meta.template == together.meta.template
    assert version.card[0].details["best_step"] == together.card[0].details["best_step"]
    assert version.card[0].details["loss"] == pytest.approx(together.card[0].details["loss"], abs=1e-3)
    found, wanted = store.load(together)["prompt"], store.load(version)["prompt"]
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_top_k_publishes_the_best_with_their_ensemble(attempt: Callable[..., Job], store: PromptStore) -> None:
    job = attempt(**sweep_of(SEEDS | {"num_virtual_tokens": [2, 5]}, publish={"top_k": 3}))
    assert job.result is not None
    assert job.result.ensemble is not None
    assert [one.version for one in job.result.ensemble] == [1, 2, 3]
    assert store.get_alias("mood", "prod").ensemble == Ensemble(members=(1, 2, 3), mode="vote")
    versions = store.list_versions("mood")[0]
    assert {version.state for version in versions} == {"published"}
    assert [version.card[0].details["ensemble"]["place"] for version in versions] == [1, 2, 3]
    assert job.metrics["ensemble"]["of"] == 3
    assert sorted(states(job)).count("chosen") == 2
    rows = {row["member"]: row for row in job.result.sweep or ()}
    ranks = [(rows[of]["score"], -rows[of]["loss"]) for of in (one.card[0].details["member"] for one in versions)]
    assert ranks == sorted(((row["score"], -row["loss"]) for row in rows.values()), reverse=True)[:3]
    assert store.find_publications(job.id) == versions


def test_events_name_the_members_and_who_leads(attempt: Callable[..., Job], jobs: JobStore) -> None:
    job = attempt(**sweep_of(SEEDS))
    events = jobs.events(job.id)
    judged = [event for event in events if event.type == "metrics" and "member" in event.data and "step" in event.data]
    assert {event.data["member"] for event in judged} == {1, 2, 3, 4}
    assert judged[0].message.startswith("member 1 (seed 1) step 1: accuracy ")
    stopped = [event for event in events if "stopped:" in event.message]
    assert [event.data["learning"] for event in stopped] == [2, 1]
    assert job.progress is not None
    assert (job.progress.learning, job.progress.leader) == (1, job.metrics["member"])


def test_member_that_diverges_loses_alone(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.take_step

    def take_step(self: Run, loss: float) -> None:
        real(self, float("nan") if self.schedule.seed == 2 else loss)

    monkeypatch.setattr(Run, "take_step", take_step)
    job = attempt(**sweep_of({"seed": [1, 2, 3], "halving": False}, publish={"top_k": 3}))
    assert job.result is not None
    assert states(job)[1] == "diverged"
    assert store.get_alias("mood", "prod").ensemble == Ensemble(members=(1, 2), mode="vote")


def test_one_that_is_left_of_several_is_published_alone(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.take_step
    monkeypatch.setattr(
        Run, "take_step", lambda self, loss: real(self, float("nan") if self.schedule.seed == 2 else loss)
    )
    job = attempt(**sweep_of({"seed": [1, 2]}, publish={"top_k": 2}))
    assert sorted(states(job)) == ["diverged", "won"]
    assert store.get_alias("mood", "prod").version == 1


def test_sweep_whose_members_all_diverge_fails_and_publishes_nothing(
    context: Context, jobs: JobStore, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.take_step
    monkeypatch.setattr(Run, "take_step", lambda self, loss: real(self, float("nan")))
    job, _ = jobs.submit(short_request(**sweep_of(SEEDS | {"halving": False})))
    monkeypatch.setattr(run, "_context", lambda *_: context)
    number = context.records.claim(job.id, "here")
    settings = Settings.model_validate({"redis_url": "unix:///nothing"})
    assert run.train(settings, context.records, job.id, number, context.stop) == run.ENDED
    ended = jobs.get(job.id)
    assert (ended.status, ended.error and ended.error.code) == ("failed", "diverged")
    assert store.find_publications(job.id) == []


def test_member_that_does_not_fit_loses_alone(
    attempt: Callable[..., Job], jobs: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The submission was made where no backbone is loaded, so the trainer is the first to see it. Its log names the
    error alone, whose message may quote a row."""
    long = "word " * 200 + "<prompt:4>{text}"
    job = attempt(**sweep_of({"template": ["<prompt:4>{text} It was", long], "seed": [1, 2]}))
    assert job.status == "succeeded"
    assert sorted(states(job)) == ["failed", "failed", "stopped", "won"]
    told = [event.message for event in jobs.events(job.id) if event.type == "warning"][-2:]
    logged = [line for line in caplog.messages if " cannot begin: " in line]
    assert logged == [f"{job.id}: member {number} cannot begin: context_too_long" for number in (3, 4)]
    assert [message.partition(" (template word ")[0] for message in told] == ["member 3", "member 4"]


def test_gate_compares_the_ensemble_with_what_the_alias_points_to(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sweep again makes the same versions, which are no better than themselves. Each ensemble is measured
    once."""
    asked = sweep_of(SEEDS, publish={"top_k": 2, "when": "better_than_current"})
    assert attempt(**asked).result
    real, measured = publishing.measure_together, []

    def measure_together(*args: Any) -> Any:
        measured.append(real(*args))
        return measured[-1]

    monkeypatch.setattr(publishing, "measure_together", measure_together)
    job = attempt(**asked)
    assert len(measured) == 2
    assert job.result is not None
    assert (job.status, job.result.promoted) == ("succeeded", False)
    assert store.get_alias("mood", "prod").versions == (1, 2)
    refused = store.list_versions("mood", after=2)[0]
    assert [version.state for version in refused] == ["candidate", "candidate"]
    told = refused[0].card[0].details["compared_with"]
    assert (told["version"], told["ensemble"], told["gain"]) == (None, [1, 2], 0.0)
    assert told["score"] == refused[0].card[0].details["ensemble"]["score"]


def test_winner_that_is_worse_than_the_current_version_stays_a_candidate(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt()
    job = attempt(**sweep_of(SEEDS, publish={"when": "better_than_current", "metric": "loss", "min_gain": 50.0}))
    assert job.result is not None
    assert not job.result.promoted
    assert store.get_alias("mood", "prod").version == 1


def test_ensemble_gives_way_to_a_better_version(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(hyperparameters={"n_epochs": 1, "learning_rate": 1e-9})
    attempt(hyperparameters={"n_epochs": 1, "learning_rate": 1e-9, "seed": 2})
    ensemble = AliasTarget(ensemble=Ensemble(members=(1, 2), mode="mean"))
    store.move_alias("mood", "prod", ensemble, expected=None)
    job = attempt(**sweep_of(SEEDS, steps=40, publish={"when": "better_than_current", "metric": "loss"}))
    assert job.result is not None
    told = store.get_version("mood", 3).card[0].details["compared_with"]
    assert (told["ensemble"], job.result.promoted) == ([1, 2], told["gain"] > 0)
    assert store.get_alias("mood", "prod").version == (3 if job.result.promoted else None)


def test_publish_of_several_whose_answer_was_lost_is_made_once(
    attempt: Callable[..., Job], store: PromptStore, answers_lost: Callable[[str, int], None]
) -> None:
    answers_lost("publish_together", 1)
    job = attempt(**sweep_of(SEEDS, publish={"top_k": 2}))
    assert job.status == "succeeded"
    assert len(store.list_versions("mood")[0]) == 2


def test_worker_that_died_behind_the_commit_finds_all_versions(
    context: Context, jobs: JobStore, store: PromptStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job, _ = jobs.submit(short_request(**sweep_of(SEEDS, publish={"top_k": 2})))

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    records = context.records
    number = records.claim(job.id, "here")
    real = JobRecords.move
    monkeypatch.setattr(
        JobRecords, "move", lambda self, i, to, **more: die() if to == "succeeded" else real(self, i, to, **more)
    )
    with pytest.raises(KeyboardInterrupt):
        Session(context, job.id, number).run()
    monkeypatch.setattr(JobRecords, "move", real)
    assert records.take_back(job.id, attempt=number, reason="it died") == "queued"
    settings = Settings.model_validate({"redis_url": "unix:///nothing", "data_dir": tmp_path})
    supervisor = Supervisor(settings, records, store, host="h", name="w", stop=context.stop)
    assert supervisor.attend(job.id, beat=lambda: None) is False
    ended = jobs.get(job.id)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    assert ended.result is not None
    assert [one.version for one in ended.result.ensemble or ()] == [1, 2]
    assert len(ended.result.sweep or ()) == 4


def test_overtaken_sweep_publishes_none_of_its_versions(
    context: Context, jobs: JobStore, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = jobs.submit(short_request(**sweep_of(SEEDS, publish={"top_k": 2})))
    number = context.records.claim(job.id, "here")
    context.records.take_back(job.id, attempt=number, reason="thought dead")
    context.records.claim(job.id, "elsewhere")
    with pytest.raises((Lost, Interrupted)):
        Session(context, job.id, number).run()
    assert store.find_publications(job.id) == []


def test_cancelled_sweep_publishes_nothing(context: Context, jobs: JobStore, store: PromptStore) -> None:
    job, _ = jobs.submit(short_request(**sweep_of(SEEDS, publish={"top_k": 2})))
    number = context.records.claim(job.id, "here")
    jobs.cancel(job.id)
    with pytest.raises(Interrupted):
        Session(context, job.id, number).run()
    assert store.find_publications(job.id) == []


def test_sweep_stopped_again_and_again_ends_as_one_that_was_not(
    attempt: Callable[..., Job], context: Context, jobs: JobStore, store: PromptStore, tmp_path: Path
) -> None:
    """Stopped behind every step, so also between the rungs and their checkpoints: on the CPU bit for bit the same."""
    asked = sweep_of({"num_virtual_tokens": [3, 5], "seed": [1, 2]}, publish={"top_k": 2})
    whole = attempt(task="whole", **asked)
    job, _ = jobs.submit(short_request(**asked))
    context.stop.set()
    for number in range(1, 6):
        with pytest.raises(Interrupted):
            Session(context, job.id, context.records.claim(job.id, "here")).run()
        assert context.records.move(job.id, "queued", attempt=number) == "moved"
    assert list(job_folder(tmp_path, job.id).glob("step-00000005.*"))
    context.stop.clear()
    Session(context, job.id, context.records.claim(job.id, "here")).run()
    ended = jobs.get(job.id)
    assert ended.result is not None
    assert whole.result is not None
    assert ended.result.sweep == whole.result.sweep
    for one, other in zip(store.list_versions("mood")[0], store.list_versions("whole")[0], strict=True):
        assert np.array_equal(store.load(one)["prompt"], store.load(other)["prompt"])
        assert one.card[0].score == other.card[0].score


def test_dev_rows_are_the_same_for_every_seed(attempt: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    real = Evaluator.quick_judge

    def quick_judge(self: Evaluator, examples: Any) -> Any:
        seeds.append(self.seed)
        return real(self, examples)

    monkeypatch.setattr(Evaluator, "quick_judge", quick_judge)
    attempt(**sweep_of(SEEDS))
    assert len(seeds) == 4
    assert len(set(seeds)) == 1


def test_words_are_searched_for_once(attempt: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    real = Preparation._search

    def search(self: Preparation, bare: Any, plan: Any) -> Any:
        searched.append(len(self._words))
        return real(self, bare, plan)

    monkeypatch.setattr(Preparation, "_search", search)
    job = attempt(**sweep_of({"num_virtual_tokens": [2, 3]}, verbalizer="search"))
    assert job.status == "succeeded"
    assert searched == [0, 1]


def test_nothing_is_left_where_no_member_can_begin(attempt: Callable[..., Job], backbone: Backbone) -> None:
    long = "word " * 200
    with pytest.raises(ContextTooLong):
        attempt(**sweep_of({"template": [f"{long}<prompt:4>{{text}}", f"{long}.<prompt:4>{{text}}"]}))
