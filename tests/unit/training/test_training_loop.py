"""The loop learns, keeps its best, stops when it should, and goes on after a kill as if nothing had happened."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.backbone import Backbone, compile_verbalizer, default_bos, encode_row, parse_template, score_labels
from app.training import cotraining, gradients
from app.training.checkpoints import KEEP, Checkpoints
from app.training.data import parse_rows
from app.training.evaluate import Evaluator
from app.training.examples import Encoded, Encoder
from app.training.methods import METHODS, Learner, Surroundings
from app.training.methods.prompt_tuning import PromptTuningConfig
from app.training.requests import Hyperparameters
from app.training.schedule import PATIENCE, make_schedule
from app.training.trainer import Diverged, Interrupted, Judgement, Outcome, Trainer
from tests.training_data import mood_rows

WORDS = {"bad": [" maybe"], "good": [" sports"]}  # nothing the backbone would say by itself


@dataclass
class Witness:
    """Listens, and asks to stop after step `stop_after`."""

    stop_after: int = 10**9
    losses: dict[int, float] = field(default_factory=dict)
    scores: list[Judgement] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stop_requested(self) -> bool:
        return max(self.losses, default=0) >= self.stop_after

    def began(self, step: int) -> None:
        self.begins.append(step)

    def stepped(self, step: int, loss: float, best: Judgement | None) -> None:
        self.losses[step] = loss

    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None:
        self.scores.append(judgement)

    def saved(self, step: int) -> None:
        self.saves.append(step)

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def encoder(backbone: Backbone) -> Encoder:
    verbalizer = compile_verbalizer(backbone.tokenizer, WORDS)
    template = parse_template("<prompt:4>{text}\nAnswer:")
    return Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), verbalizer, 64)


def learner(backbone: Backbone, form: str = "residual_mlp") -> Learner:
    around = Surroundings(
        num_virtual_tokens=4,
        embedding=backbone.embedding_weight.detach().float(),
        frequent=list(range(300, 400)),
        label_tokens=(),
        text_tokens=(),
        generator=torch.Generator().manual_seed(0),
    )
    config = PromptTuningConfig.model_validate({"reparametrization": form})
    return METHODS[config.type].begin(config, around)


def build(
    backbone: Backbone,
    folder: Path,
    witness: Witness,
    *,
    steps: int = 8,
    batch_size: int = 4,
    judge: Callable[[Tensor], Judgement] | None = None,
    attempt: int = 1,
    identity: str = "same",
    form: str = "residual_mlp",
    checkpoint_s: float = 0.0,
    learning_rate: float | str = "auto",
) -> Trainer:
    encode = encoder(backbone)
    examples = parse_rows(mood_rows()).examples
    encoded = [encode.encode(example) for example in examples]
    wanted = Hyperparameters.model_validate(
        {"batch_size": batch_size, "n_epochs": steps / (16 / batch_size), "learning_rate": learning_rate}
    )
    evaluator = Evaluator(backbone, encode, "accuracy", max_tokens=8, seed=0)
    return Trainer(
        backbone,
        learner(backbone, form),
        encoded,
        encode.verbalizer,
        make_schedule(wanted, rows=16, num_virtual_tokens=4),
        judge=judge or evaluator.quick_judge(examples),
        listener=witness,
        checkpoints=Checkpoints(folder, attempt=attempt, identity=identity),
        checkpoint_s=checkpoint_s,
    )


def outcomes_are_equal(a: Outcome, b: Outcome) -> bool:
    return torch.equal(a.tensors["prompt"], b.tensors["prompt"]) and (a.judgement, a.best_step, a.steps) == (
        b.judgement,
        b.best_step,
        b.steps,
    )


@pytest.mark.parametrize("form", ["none", "residual_mlp"])
def test_loss_goes_down_on_a_toy_task(backbone: Backbone, tmp_path: Path, form: str) -> None:
    witness = Witness()
    outcome = build(backbone, tmp_path, witness, steps=24, batch_size=8, form=form, checkpoint_s=60).run()
    losses = [witness.losses[step] for step in sorted(witness.losses)]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert outcome.judgement.rank == max(judgement.rank for judgement in witness.scores)
    assert outcome.tensors["prompt"].shape == (4, backbone.hidden_size)


def test_backbone_is_left_as_it_was(backbone: Backbone, tmp_path: Path) -> None:
    before = backbone.embedding_weight.clone()
    build(backbone, tmp_path, Witness(), steps=2).run()
    assert torch.equal(backbone.embedding_weight, before)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert not backbone.model.training


@pytest.mark.parametrize("stops", [(1,), (5,), (2, 3, 6)])
def test_resumed_run_continues_bit_for_bit(backbone: Backbone, tmp_path: Path, stops: Sequence[int]) -> None:
    whole = Witness()
    expected = build(backbone, tmp_path / "whole", whole).run()
    resumed: dict[int, float] = {}
    for attempt, stop in enumerate(stops, start=1):
        witness = Witness(stop_after=stop)
        with pytest.raises(Interrupted):
            build(backbone, tmp_path / "parts", witness, attempt=attempt).run()
        assert witness.begins == [max(resumed, default=0)]
        resumed |= witness.losses
    last = Witness()
    found = build(backbone, tmp_path / "parts", last, attempt=len(stops) + 1).run()
    assert resumed | last.losses == whole.losses
    assert outcomes_are_equal(found, expected)


def test_finished_run_resumes_to_its_outcome_without_a_step(backbone: Backbone, tmp_path: Path) -> None:
    expected = build(backbone, tmp_path, Witness(), steps=2).run()
    witness = Witness()
    assert outcomes_are_equal(build(backbone, tmp_path, witness, steps=2, attempt=2).run(), expected)
    assert witness.losses == {}


def test_checkpoint_of_another_plan_is_not_resumed(backbone: Backbone, tmp_path: Path) -> None:
    build(backbone, tmp_path, Witness(), steps=2).run()
    witness = Witness()
    build(backbone, tmp_path, witness, steps=2, identity="other").run()
    assert sorted(witness.losses) == [1, 2]


def test_damaged_checkpoint_leaves_the_one_before(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        build(backbone, tmp_path, Witness(stop_after=3)).run()
    newest = max(tmp_path.glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    witness = Witness()
    build(backbone, tmp_path, witness, attempt=2).run()
    assert min(witness.losses) == 3


def test_two_newest_checkpoints_are_kept_and_nothing_else(backbone: Backbone, tmp_path: Path) -> None:
    build(backbone, tmp_path, Witness(), steps=5).run()
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    assert KEEP == 2


def test_job_that_begins_anew_keeps_its_own_checkpoints_and_not_later_ones_of_another_plan(tmp_path: Path) -> None:
    def saved(identity: str, *steps: int, attempt: int = 1) -> Checkpoints:
        checkpoints = Checkpoints(tmp_path, attempt=attempt, identity=identity)
        for step in steps:
            checkpoints.save(step, {"at": torch.tensor([float(step)])}, {})
        return checkpoints

    saved("before", 400, 500)
    found = saved("now", 10, attempt=2).load()
    assert found is not None
    assert (found[0]["at"].item(), found[1]["step"]) == (10.0, 10)
    saved("now", 20, 30, attempt=2)
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff" * 8, (2**60).to_bytes(8, "little"), b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"],
    ids=["empty", "endless", "too long", "no object", "no state"],
)
def test_checkpoint_is_saved_beside_one_whose_header_is_damaged(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "step-00000005.attempt-000001.safetensors").write_bytes(damage)
    checkpoints = Checkpoints(tmp_path, attempt=2, identity="now")
    checkpoints.save(10, {"at": torch.tensor([10.0])}, {})
    found = checkpoints.load()
    assert found is not None
    assert found[1]["step"] == 10


def test_prompt_that_replicas_would_refuse_is_not_kept_however_good_it_is(backbone: Backbone, tmp_path: Path) -> None:
    good = (Judgement(0.5, 1.0), Judgement(0.4, 1.1))
    judged = iter((*good, *[Judgement(0.9, 0.1, refusal="a vector of norm 3e+04")] * 50))
    witness = Witness()
    outcome = build(backbone, tmp_path, witness, steps=40, judge=lambda _: next(judged), checkpoint_s=60).run()
    assert (outcome.best_step, outcome.judgement.score, outcome.stopped_early) == (2, 0.5, True)
    assert witness.warnings[0] == "step 6: replicas would refuse this prompt, a vector of norm 3e+04"


def test_judge_says_why_replicas_would_refuse_vectors_beyond_reason(backbone: Backbone) -> None:
    encode = encoder(backbone)
    judge = Evaluator(backbone, encode, "accuracy", max_tokens=8, seed=0).quick_judge(parse_rows(mood_rows()).examples)
    size = encode.template.num_virtual_tokens
    vectors = torch.full((size, backbone.hidden_size), backbone.embedding_norm)
    assert judge(vectors).refusal == ""
    assert "a vector of norm" in judge(1e4 * vectors).refusal


def test_full_disk_at_a_checkpoint_is_warned_of_and_training_goes_on(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.training.checkpoints.write_atomically", full)
    witness = Witness()
    outcome = build(backbone, tmp_path, witness, steps=2).run()
    assert outcome.steps == 2
    assert witness.saves == []
    assert "No space left on device" in witness.warnings[0]


def test_best_prompt_is_kept_and_not_the_last(backbone: Backbone, tmp_path: Path) -> None:
    scores = iter([0.2, 0.9, 0.5, 0.9, *[0.1] * 20])
    witness = Witness()
    outcome = build(backbone, tmp_path, witness, judge=lambda _: Judgement(next(scores), 1.0)).run()
    assert (outcome.best_step, outcome.judgement.score) == (2, 0.9)


def test_equal_scores_are_decided_by_the_loss() -> None:
    assert Judgement(0.5, 0.1).rank > Judgement(0.5, 0.2).rank
    assert Judgement(0.5, 0.9).rank > Judgement(0.4, 0.1).rank
    assert Judgement(0.4, 0.4, lower_is_better=True).rank > Judgement(0.5, 0.5, lower_is_better=True).rank


def test_run_without_improvement_stops_early(backbone: Backbone, tmp_path: Path) -> None:
    witness = Witness()
    outcome = build(backbone, tmp_path, witness, steps=40, judge=lambda _: Judgement(0.5, 1.0), checkpoint_s=60).run()
    assert outcome.stopped_early
    assert len(witness.scores) == 1 + PATIENCE


def test_score_that_falls_after_its_best_does_not_stop_a_run_whose_loss_falls(
    backbone: Backbone, tmp_path: Path
) -> None:
    answers = (Judgement(0.5 if n else 0.9, 100.0 - n) for n in range(100))
    outcome = build(backbone, tmp_path, Witness(), steps=24, judge=lambda _: next(answers), checkpoint_s=60).run()
    assert (outcome.stopped_early, outcome.best_step) == (False, 1)


def broken_losses(monkeypatch: pytest.MonkeyPatch, bad: Mapping[int, float]) -> None:
    """Multiply the loss of the steps in `bad`, counted from 1."""
    real, calls = gradients.summed_loss, iter(range(1, 10**9))

    def summed_loss(*args: Any) -> Tensor:
        return real(*args) * bad.get(next(calls), 1.0)

    monkeypatch.setattr(gradients, "summed_loss", summed_loss)


def test_step_without_a_finite_loss_changes_nothing_and_is_warned_of(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_losses(monkeypatch, {2: math.nan, 3: math.inf, 5: math.nan})
    witness = Witness()
    outcome = build(backbone, tmp_path, witness).run()
    assert sorted(witness.losses) == [1, 4, 6, 7, 8]
    assert len(witness.warnings) == 3
    assert torch.isfinite(outcome.tensors["prompt"]).all()


def test_three_steps_in_a_row_without_a_finite_loss_are_a_failure(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_losses(monkeypatch, {2: math.nan, 3: math.nan, 4: math.nan})
    with pytest.raises(Diverged, match="3 steps in a row") as caught:
        build(backbone, tmp_path, Witness()).run()
    assert caught.value.code == "diverged"


def test_batch_in_parts_gives_the_gradient_of_the_whole(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, split = Witness(), Witness()
    build(backbone, tmp_path / "a", whole, steps=2).run()
    monkeypatch.setattr(cotraining, "MICRO_TOKENS", 1)
    build(backbone, tmp_path / "b", split, steps=2).run()
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)


def test_trained_score_is_the_served_score(backbone: Backbone, tmp_path: Path) -> None:
    """A row alone, with the exported prompt, scores as it did in the evaluator's batch."""
    encode = encoder(backbone)
    prompt = build(backbone, tmp_path, Witness(), steps=2).run().tensors["prompt"]
    examples: list[Encoded] = [encode.encode(example) for example in parse_rows(mood_rows()).examples]
    evaluator = Evaluator(backbone, encode, "loss", max_tokens=8, seed=0)
    together = evaluator.quick_judge([one.example for one in examples])(prompt).loss
    alone = []
    for one in examples:
        row = encode_row(backbone.tokenizer, encode.template, encode.bos, one.example.fields)
        assert encode.verbalizer is not None
        (scores,) = score_labels(backbone, [row], [prompt], [encode.verbalizer])
        alone.append(-float(scores.detach().log_softmax(-1)[one.label or 0]))
    assert together == pytest.approx(sum(alone) / len(alone), abs=1e-4)
