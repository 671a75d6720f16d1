"""The worse half of the runs stops at a quarter and at a half of the steps, and the best one is what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.backbone import Backbone
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.halving import SuccessiveHalving, ranked
from app.training.runs import Interrupted, Judgement, Run
from tests.cotraining import KINDS, Hearer, make_run

STEPS = 16


def constant(score: float) -> Callable[[object], Judgement]:
    return lambda _: Judgement(score, 1.0 - score)


def sweep(
    backbone: Backbone, folder: Path, scores: list[float], *, stop_after: int = 10**9, attempt: int = 1
) -> list[Run]:
    hearer = Hearer(stop_after=stop_after)
    kinds = [replace(KINDS[0], seed=i, batch_size=2) for i in range(len(scores))]
    runs = [
        make_run(backbone, kind, hearer, steps=STEPS, judge=constant(score))
        for kind, score in zip(kinds, scores, strict=True)
    ]
    checkpoints = Checkpoints(folder, attempt=attempt, identity="same")
    CoTrainer(backbone, runs, watcher=hearer, checkpoints=checkpoints, checkpoint_s=0, prune=SuccessiveHalving()).run()
    return runs


def test_worse_half_stops_at_each_rung(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.training.runs.PATIENCE", 10**9)
    runs = sweep(backbone, tmp_path, [0.3, 0.9, 0.1, 0.5, 0.2])
    assert [run.place.step for run in runs] == [8, 16, 4, 16, 4]
    assert [run.place.pruned for run in runs] == [True, False, True, False, True]
    assert ranked(runs)[0] is runs[1]
    assert runs[2].outcome.steps == 4  # what was stopped has an outcome too


def test_halving_takes_half_of_the_steps(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.training.runs.PATIENCE", 10**9)
    runs = sweep(backbone, tmp_path, [0.1, 0.2, 0.3, 0.4])
    assert sum(run.place.step for run in runs) == len(runs) * STEPS / 2


def test_sweep_killed_between_its_rungs_prunes_as_one_that_was_not(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.training.runs.PATIENCE", 10**9)
    scores = [0.3, 0.9, 0.1, 0.5, 0.2]
    whole = sweep(backbone, tmp_path / "whole", scores)
    for attempt, stop in enumerate((4, 6, 8), start=1):
        with pytest.raises(Interrupted):
            sweep(backbone, tmp_path / "parts", scores, stop_after=stop, attempt=attempt)
    resumed = sweep(backbone, tmp_path / "parts", scores, attempt=4)
    assert [run.place.step for run in resumed] == [run.place.step for run in whole]
    for one, other in zip(resumed, whole, strict=True):
        assert one.outcome.tensors["prompt"].equal(other.outcome.tensors["prompt"])


def test_run_without_a_finite_judgement_ranks_last(backbone: Backbone, tmp_path: Path) -> None:
    lost, found = (make_run(backbone, KINDS[0], Hearer(), judge=constant(score)) for score in (math.nan, 0.1))
    for run in (lost, found):
        run.evaluate()
    assert ranked([lost, found]) == [found, lost]
