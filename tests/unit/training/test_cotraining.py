"""Prompts that learn together learn what each learns alone, also across kills, and one's trouble stays its own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.backbone import Backbone
from app.training import gradients
from app.training.gradients import Lesson, accumulate
from app.training.runs import Diverged, Interrupted, Judgement
from tests.cotraining import KINDS, Hearer, Kind, cotrain, make_run

STEPS = 50


@pytest.mark.parametrize("tokens", [1, 200, 1 << 20])
def test_gradients_of_a_common_batch_equal_those_of_each_alone(backbone: Backbone, tokens: int) -> None:
    def learn(kinds: Sequence[Kind], tokens: int) -> tuple[list[float], list[list[torch.Tensor]]]:
        runs = [make_run(backbone, kind, Hearer()) for kind in kinds]
        losses = accumulate(
            backbone, [Lesson(run.prompt(), run.next_batch(), run.verbalizer) for run in runs], tokens=tokens
        )
        return losses, [[parameter.grad for parameter in run._parameters.values()] for run in runs]

    losses, gradients = learn(KINDS, tokens)
    for kind, loss, found in zip(KINDS, losses, gradients, strict=True):
        (wanted_loss,), (wanted,) = learn([kind], 1 << 20)
        assert loss == pytest.approx(wanted_loss, abs=1e-5)
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_learning_together_gives_the_curves_of_learning_alone(backbone: Backbone, tmp_path: Path) -> None:
    def judge(_: Any) -> Judgement:
        return Judgement(0.0, next(falling))

    falling = iter(range(10**6, 0, -1))
    alone, together = [Hearer() for _ in KINDS], [Hearer() for _ in KINDS]
    for i, kind in enumerate(KINDS):
        run = make_run(backbone, kind, alone[i], steps=STEPS, judge=judge)
        cotrain(backbone, [run], alone[i], tmp_path / f"alone-{i}")
    runs = [make_run(backbone, kind, together[i], steps=STEPS, judge=judge) for i, kind in enumerate(KINDS)]
    cotrain(backbone, runs, together[0], tmp_path / "together")
    for one, other in zip(together, alone, strict=True):
        assert sorted(one.losses) == list(range(1, STEPS + 1))
        assert one.losses == pytest.approx(other.losses, abs=1e-4)


def test_runs_end_each_at_its_own_step(backbone: Backbone, tmp_path: Path) -> None:
    hearers = [Hearer() for _ in KINDS]
    runs = [make_run(backbone, kind, hearer) for kind, hearer in zip(KINDS, hearers, strict=True)]
    cotrain(backbone, runs, hearers[0], tmp_path)
    assert [run.outcome.steps for run in runs] == [kind.steps for kind in KINDS]
    assert [max(hearer.losses) for hearer in hearers] == [kind.steps for kind in KINDS]


def test_run_that_diverges_leaves_the_others_as_they_were(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearers = [Hearer() for _ in KINDS]
    runs = [make_run(backbone, kind, hearer) for kind, hearer in zip(KINDS, hearers, strict=True)]
    cotrain(backbone, runs, hearers[0], tmp_path / "a")
    real, broken = gradients.summed_loss, Hearer()

    def summed_loss(verbalizer: Any, *of: Any) -> torch.Tensor:
        return real(verbalizer, *of) * (math.nan if verbalizer is sick.verbalizer else 1.0)

    monkeypatch.setattr(gradients, "summed_loss", summed_loss)
    sick, again = make_run(backbone, KINDS[1], broken), [Hearer() for _ in KINDS[2:]]
    others = [make_run(backbone, kind, hearer) for kind, hearer in zip(KINDS[2:], again, strict=True)]
    cotrain(backbone, [sick, *others], broken, tmp_path / "b")
    with pytest.raises(Diverged, match="3 steps in a row"):
        sick.outcome  # noqa: B018 - it raises
    assert broken.losses == {}
    for hearer, before in zip(again, hearers[2:], strict=True):
        assert hearer.losses == pytest.approx(before.losses, abs=1e-4)


def test_interrupted_runs_go_on_together_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    def curves(folder: str, stops: tuple[int, ...]) -> list[dict[int, float]]:
        heard: list[dict[int, float]] = [{} for _ in KINDS]
        for attempt, stop in enumerate((*stops, 10**9), start=1):
            hearers = [Hearer(stop_after=stop) for _ in KINDS]
            runs = [make_run(backbone, kind, hearer) for kind, hearer in zip(KINDS, hearers, strict=True)]
            try:
                cotrain(backbone, runs, hearers[1], tmp_path / folder, attempt=attempt)
            except Interrupted:
                assert stop < 10**9
            for known, hearer in zip(heard, hearers, strict=True):
                known |= hearer.losses
        return heard

    assert curves("parts", (1, 3, 7)) == curves("whole", ())


def train_in_a_process(folder: Path, kill_at: int) -> int:
    command = [sys.executable, "-m", "tests.cotraining", str(folder), str(kill_at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=120, check=False).returncode


def losses_in(folder: Path) -> dict[tuple[int, int], list[float]]:
    found: dict[tuple[int, int], list[float]] = {}
    for line in (folder / "losses.jsonl").read_text().splitlines():
        run, step, loss = json.loads(line)
        found.setdefault((run, step), []).append(loss)
    return found


@pytest.mark.chaos
def test_runs_killed_again_and_again_learn_bit_for_bit_what_they_would_have(tmp_path: Path) -> None:
    """A process is killed after every few reports, so between two runs' steps and between a step and its checkpoint."""
    assert train_in_a_process(tmp_path / "whole", 0) == 0
    kills = 0
    while (code := train_in_a_process(tmp_path / "killed", 5 + kills % 4)) == -signal.SIGKILL:
        kills += 1
        assert kills < 30
    assert code == 0
    assert kills > 5
    whole, killed = losses_in(tmp_path / "whole"), losses_in(tmp_path / "killed")
    assert {key: set(losses) for key, losses in killed.items()} == {key: set(losses) for key, losses in whole.items()}
    assert (tmp_path / "killed" / "best.json").read_text() == (tmp_path / "whole" / "best.json").read_text()
