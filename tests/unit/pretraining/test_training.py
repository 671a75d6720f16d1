from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining import checkpoint
from pretraining.checkpoint import checkpoints, read_checkpoint
from pretraining.errors import WorkError
from pretraining.objectives.causal import Causal, document_mask
from pretraining.optimizer import Average, split_parameters
from pretraining.place import Place
from pretraining.recipe import Recipe
from pretraining.tokenizer import BOS, load_tokenizer
from pretraining.trainer import PAUSE, Meter, Trainer
from tests.unit.pretraining.conftest import World, shorter


def trainer(world: World, recipe: Recipe) -> Trainer:
    return Trainer(recipe, Place(world.work, world.data), load_tokenizer(world.work / "tokenizer"))


def steps(run: Trainer, count: int) -> list[float]:
    meter = Meter(run.place.log)
    return [run.train_step(meter) for _ in range(count)]


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def uncut(packed: World, recipe: Recipe, tmp_path: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of all steps of a run never cut off, and all tensors at its end."""
    run = trainer(packed, recipe)
    found = steps(run, recipe.train.steps)
    run.save()
    _, tensors = read_checkpoint(checkpoints(run.place.checkpoints)[-1])
    run.place.checkpoints.rename(tmp_path / "uncut")
    return found, tensors


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 11])
def test_run_when_cut_off_at_a_step_and_resumed_is_the_same_bit_for_bit(
    packed: World, recipe: Recipe, uncut: tuple[list[float], dict[str, torch.Tensor]], cut: int
) -> None:
    first = trainer(packed, recipe)
    found = steps(first, cut)
    first.save()
    steps(first, 1)  # work that the cut loses
    torch.manual_seed(1234)
    second = trainer(packed, recipe)
    assert second.step == cut
    found += steps(second, recipe.train.steps - cut)
    second.save()
    assert found == uncut[0]
    assert same(read_checkpoint(checkpoints(second.place.checkpoints)[-1])[1], uncut[1])


def test_batch_when_computed_in_parts_is_the_same_step(packed: World, recipe: Recipe) -> None:
    whole = steps(trainer(packed, recipe), 8)
    parts = steps(trainer(packed, shorter(recipe, part_tokens=64)), 8)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_loss_when_a_small_model_trains_falls(packed: World, recipe: Recipe) -> None:
    found = steps(trainer(packed, shorter(recipe, steps=60)), 60)
    assert sum(found[-5:]) / 5 < found[0] - 1.5


def test_run_when_finished_has_logged_sources_and_evaluated(packed: World, recipe: Recipe) -> None:
    run = trainer(packed, recipe)
    assert run.run()
    lines = lines_of(run.place.log)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert set(lines[0]["sources"]) == {"wikipedia"}
    assert set(lines[-1]["sources"]) == {"wikipedia", "nli", "sentences", "reading"} & set(lines[-1]["sources"])
    assert any(line["sources"].get("sentences", {}).get("answer_loss") for line in lines)
    (evaluation,) = lines_of(run.place.evaluations)
    assert evaluation["probes"][0]["rows"] == 12
    assert evaluation["kept_back"]["wikipedia"]["bits_per_byte"] > 0


def test_log_when_resumed_holds_no_step_twice(packed: World, recipe: Recipe) -> None:
    first = trainer(packed, recipe)
    first.run(until=4)
    meter = Meter(first.place.log)
    first.train_step(meter)
    meter.write(first.step)  # after the last checkpoint: this step will be done again
    trainer(packed, recipe).run()
    logged = [line["step"] for line in lines_of(first.place.log)]
    assert logged == [2, 4, 6, 8, 10, 12]


def test_run_when_paused_waits_with_its_state_saved_and_goes_on(
    packed: World, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    run = trainer(packed, recipe)
    pause = packed.work / PAUSE
    pause.touch()

    def sleep(_: float) -> None:
        waits.append(run.step)
        assert len(checkpoints(run.place.checkpoints)) == 1
        if len(waits) == 3:
            pause.unlink()

    monkeypatch.setattr("pretraining.trainer.time.sleep", sleep)
    assert run.run(until=3)
    assert waits == [0, 0, 0]
    assert run.step == 3


def test_run_when_asked_to_end_saves_after_the_step_and_says_it_is_not_done(packed: World, recipe: Recipe) -> None:
    run = trainer(packed, shorter(recipe, steps=100_000))

    def end_soon() -> None:
        while run.step < 2:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=end_soon)
    thread.start()
    assert not run.run()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    (file,) = checkpoints(run.place.checkpoints)
    assert read_checkpoint(file)[0]["step"] == run.step >= 2


def test_checkpoint_when_writing_fails_leaves_the_one_before(
    packed: World, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(packed, recipe)
    steps(run, 1)
    run.save()
    steps(run, 1)

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("pretraining.files.os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            run.save()
    assert trainer(packed, recipe).step == 1
    assert [file.name for file in run.place.checkpoints.iterdir()] == ["00000001.safetensors"]


def test_checkpoints_when_many_are_written_are_the_last_two(packed: World, recipe: Recipe) -> None:
    run = trainer(packed, recipe)
    for _ in range(4):
        steps(run, 1)
        run.save()
    assert [file.stem for file in checkpoints(run.place.checkpoints)] == ["00000003", "00000004"]
    assert checkpoint.KEEP == 2


def test_checkpoint_when_of_another_recipe_is_refused(packed: World, recipe: Recipe) -> None:
    run = trainer(packed, recipe)
    steps(run, 1)
    run.save()
    with pytest.raises(WorkError, match="another recipe"):
        trainer(packed, shorter(recipe, matrix_rate=0.5))
    with pytest.raises(WorkError, match="not a checkpoint of this model"):
        trainer(packed, replace(recipe, shape=replace(recipe.shape, hidden=64)))
    assert trainer(packed, shorter(recipe, log_every=1, checkpoint_every=3)).step == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_token_when_another_document_is_packed_before_it_has_the_same_logits(recipe: Recipe, attention: str) -> None:
    model = Causal.new_model(shorter(recipe, attention=attention), 100).eval()
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(4, 100, (1, 9), generator=generator) for _ in range(2))
    one[0, 0] = other[0, 0] = BOS
    both = torch.cat((other, one), 1)
    with torch.no_grad():
        alone = model.model(input_ids=one, attention_mask=document_mask(one, attention)).last_hidden_state
        packed_last = model.model(input_ids=both, attention_mask=document_mask(both, attention)).last_hidden_state[
            :, 9:
        ]
        plain = model.model(input_ids=one).last_hidden_state
    torch.testing.assert_close(alone, packed_last, atol=2e-5, rtol=0)
    torch.testing.assert_close(alone, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_when_weights_are_given_is_their_mean(recipe: Recipe, attention: str) -> None:
    model = Causal.new_model(shorter(recipe, attention=attention), 100).eval()
    ids = torch.randint(4, 100, (2, 11), generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([[0.0, 1, 1, 5, 1, 0, 0, 0, 0, 0], [1.0] * 10])
    answers = weights == 5
    found = Causal.losses(model, ids[:, :-1], ids[:, 1:], weights, answers)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        each = -logits.gather(2, ids[:, 1:, None])[..., 0]
    assert found.total.item() == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-5)
    assert found.plain.tolist() == pytest.approx([float(each[0, 1:5].sum()), float(each[1].sum())], rel=1e-5)
    assert found.counted.tolist() == [4, 10]
    assert found.answer.tolist() == pytest.approx([float(each[0, 3]), 0.0], rel=1e-5)
    assert found.answers.tolist() == [1, 0]


def test_parameters_when_split_are_all_there_once(recipe: Recipe) -> None:
    model = Causal.new_model(recipe, 100)
    matrices, others = split_parameters(model)
    assert {id(one) for one in matrices} | {id(one) for one in others} == {id(one) for one in model.parameters()}
    assert len(matrices) == 7 * recipe.shape.layers
    assert {one.ndim for one in matrices} == {2}
    assert any(one.shape == (100, recipe.shape.hidden) for one in others)


def test_average_when_weights_move_follows_and_swaps_back(recipe: Recipe) -> None:
    model = Causal.new_model(recipe, 100)
    average = Average(model, 0.9)
    name, weight = next(iter(model.named_parameters()))
    began = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    average.update(step=10_000)
    torch.testing.assert_close(average.weights[name], began + 0.1)
    average.swap()
    torch.testing.assert_close(weight.detach(), began + 0.1)
    average.swap()
    torch.testing.assert_close(weight.detach(), began + 1.0)
