from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.training.evaluate import Evaluator, Measured
from app.training.gate import Gain, gain_over, passes
from app.training.job import Job
from app.training.publishing import Publisher
from app.training.requests import Publish
from prompt_store import AliasTarget, PromptStore, Share, TaskSpec


def measured(outcomes: list[float], metric: Any = "accuracy") -> Measured:
    rows = np.asarray(outcomes)
    score = float(rows.mean())
    return Measured(metric, score, len(rows), (0.0, 1.0), 1.0, statistic=lambda at: float(rows[at].mean()))


def test_rows_that_both_get_right_cancel_out_of_the_interval() -> None:
    """A hundred rows, of which the new prompt wins four and loses none: alone their intervals overlap by far."""
    new, old = measured([1.0] * 54 + [0.0] * 46), measured([1.0] * 50 + [0.0] * 50)
    found = gain_over(new, old)
    assert found.gain == pytest.approx(0.04)
    assert 0.0 <= found.interval[0] < 0.04 < found.interval[1] < 0.1
    assert found.certainty > 0.95


def test_as_many_wins_as_losses_are_no_gain() -> None:
    found = gain_over(measured([1.0, 0.0] * 40), measured([0.0, 1.0] * 40))
    assert found.gain == 0.0
    assert found.interval[0] < -0.1 < 0.1 < found.interval[1]
    assert 0.3 < found.certainty < 0.7


def test_a_lower_loss_is_a_gain() -> None:
    found = gain_over(measured([0.5] * 10, "loss"), measured([0.7] * 10, "loss"))
    assert found.gain == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2, 0.2))
    assert found.certainty == 1.0


def test_certainty_counts_resamples_beyond_the_asked_gain() -> None:
    new, old = measured([1.0] * 60 + [0.0] * 40), measured([1.0] * 50 + [0.0] * 50)
    sure = [gain_over(new, old, least=least).certainty for least in (0.0, 0.1, 0.2)]
    assert sure[0] == pytest.approx(1.0, abs=0.01)
    assert 0.3 < sure[1] < 0.6
    assert sure[2] < 0.01


@pytest.mark.parametrize("other", [measured([1.0] * 9), measured([1.0] * 10, "macro_f1")])
def test_measures_of_other_rows_or_metrics_are_not_paired(other: Measured) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        gain_over(measured([1.0] * 10), other)


@pytest.mark.parametrize(
    ("asked", "gain", "certainty", "wanted"),
    [
        ({}, 0.001, 0.51, True),
        ({}, 0.0, 0.5, False),
        ({"min_gain": 0.01}, 0.01, 0.9, False),
        ({"min_gain": 0.01}, 0.011, 0.6, True),
        ({"confidence": 0.95}, 0.02, 0.94, False),
        ({"confidence": 0.95}, 0.02, 0.95, True),
        ({"confidence": 0.95}, -0.1, 0.99, False),
    ],
)
def test_gate_passes_what_was_asked_for(asked: dict[str, float], gain: float, certainty: float, wanted: bool) -> None:
    publish = Publish.model_validate({"when": "better_than_current"} | asked)
    assert passes(publish, Gain(gain, (0.0, 1.0), certainty)) is wanted


@pytest.mark.parametrize("extra", [{"metric": "accuracy"}, {"min_gain": 0.1}, {"confidence": 0.9}])
def test_conditions_without_a_comparison_are_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="better_than_current"):
        Publish.model_validate({"when": "always"} | extra)


def scores(monkeypatch: pytest.MonkeyPatch, *, current: float) -> None:
    """The current version measures `current`; what is trained measures 0.5."""

    def measured(score: float) -> Measured:
        return Measured("accuracy", score, 4, (0.0, 1.0), 1.0, statistic=lambda _: score)

    monkeypatch.setattr(Evaluator, "measure", lambda *_: measured(0.5))
    monkeypatch.setattr("app.training.publishing._measure", lambda *_: measured(current))


@pytest.mark.parametrize(("current", "promoted"), [(0.4, True), (0.5, False), (0.6, False)])
def test_better_than_current_promotes_only_what_is_better(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch, current: float, promoted: bool
) -> None:
    attempt()
    scores(monkeypatch, current=current)
    job = attempt(publish={"when": "better_than_current"})
    assert job.result is not None
    assert (job.status, job.result.version, job.result.promoted) == ("succeeded", 2, promoted)
    version = store.get_version("mood", 2)
    assert version.state == ("published" if promoted else "candidate")
    assert store.get_alias("mood", "prod").version == (2 if promoted else 1)
    told = version.card[0].details["compared_with"]
    assert (told["version"], told["score"], told["metric"]) == (1, current, "accuracy")
    assert told["gain"] == pytest.approx(0.5 - current)
    assert told["certainty"] == float(promoted)


def test_better_than_current_leaves_a_split_as_it_is(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt()
    attempt(publish={"when": "never"})
    split = AliasTarget(split=(Share(version=2, weight=0.9), Share(version=1, weight=0.1)))
    before = store.move_alias("mood", "prod", split, expected=1)
    scores(monkeypatch, current=0.1)
    job = attempt(publish={"when": "better_than_current"})
    assert job.result is not None
    assert (job.result.version, job.result.promoted) == (3, False)
    assert store.get_version("mood", 3).state == "candidate"
    assert store.get_alias("mood", "prod") == before


def test_better_than_nothing_is_promoted(attempt: Callable[..., Job], store: PromptStore) -> None:
    job = attempt(publish={"when": "better_than_current"})
    assert job.result is not None
    assert job.result.promoted
    assert store.get_alias("mood", "prod").version == 1


def test_comparison_measures_the_current_version_on_the_same_rows(
    attempt: Callable[..., Job], store: PromptStore
) -> None:
    """The same request again learns the same prompt, which is no better than itself."""
    attempt()
    job = attempt(publish={"when": "better_than_current"})
    assert job.result is not None
    assert not job.result.promoted
    first, second = (store.get_version("mood", number).card[0] for number in (1, 2))
    told = second.details["compared_with"]
    assert (told["version"], told["score"], told["gain"], told["interval"]) == (1, first.score, 0.0, [0.0, 0.0])


def test_alias_that_moves_under_a_comparison_is_compared_with_again(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt()
    attempt(publish={"when": "never"})
    scores(monkeypatch, current=0.1)
    real, seen = Publisher._decide, []

    def decide(self: Publisher, *args: Any) -> Any:
        verdict = real(self, *args)
        if not seen:
            store.move_alias("mood", "prod", 2, expected=None)
        seen.extend(version.number for version in verdict.compared)
        return verdict

    monkeypatch.setattr(Publisher, "_decide", decide)
    job = attempt(publish={"when": "better_than_current"})
    assert seen == [1, 2]
    assert job.result is not None
    assert job.result.promoted
    assert store.get_alias("mood", "prod").version == 3


def test_version_of_another_backbone_does_not_stand_in_the_way(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt()
    other = store.get_version("mood", 1).meta
    meta = other.model_copy(update={"backbone": other.backbone.model_copy(update={"fingerprint": "0" * 64})})
    vectors = np.ones((4, meta.backbone.hidden_size), np.float32)
    store.publish(task="mood", meta=meta, tensors={"prompt": vectors}, publication="elsewhere")
    job = attempt(publish={"when": "better_than_current"})
    assert job.result is not None
    assert job.result.promoted


def test_a_gain_below_the_asked_one_stays_a_candidate_with_its_card(
    attempt: Callable[..., Job], store: PromptStore
) -> None:
    attempt(hyperparameters={"n_epochs": 1, "learning_rate": 1e-9})
    job = attempt(publish={"when": "better_than_current", "metric": "loss", "min_gain": 50.0})
    assert job.result is not None
    assert (job.status, job.result.promoted) == ("succeeded", False)
    refused = store.get_version("mood", 2)
    told = refused.card[0].details["compared_with"]
    assert (refused.state, told["version"], told["metric"]) == ("candidate", 1, "loss")
    assert told["interval"][0] <= told["gain"] <= told["interval"][1]
    assert told["certainty"] == 0.0


def test_another_metric_than_the_tasks_own_decides_where_asked(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt(hyperparameters={"n_epochs": 1, "learning_rate": 1e-9})
    job = attempt(publish={"when": "better_than_current", "metric": "loss"})
    assert job.result is not None
    card = store.get_version("mood", 2).card[0]
    told = card.details["compared_with"]
    assert (told["metric"], card.metric) == ("loss", "accuracy")
    assert job.result.promoted is (card.details["loss"] < told["score"])


@pytest.mark.parametrize("fields", [("text", "title"), ("title",)])
def test_version_made_before_the_tasks_fields_changed_does_not_count(
    attempt: Callable[..., Job], store: PromptStore, fields: tuple[str, ...]
) -> None:
    attempt()
    store.put_task("mood", TaskSpec(fields=fields, labels=("bad", "good")))
    rows = [{name: f"{name} {n}" for name in fields} | {"label": ("bad", "good")[n % 2]} for n in range(16)]
    job = attempt(
        training_data={"inline": rows},
        template="<prompt:4>" + " ".join(f"{{{name}}}" for name in fields) + " So:",
        publish={"when": "better_than_current"},
    )
    assert (job.status, job.result and job.result.promoted) == ("succeeded", True)
    assert store.get_alias("mood", "prod").version == 2
