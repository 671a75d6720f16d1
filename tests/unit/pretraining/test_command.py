from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining import __main__ as command
from pretraining import speed
from pretraining.recipe import read_recipe
from tests.unit.pretraining.conftest import World, raw_recipe, toml


@pytest.fixture(autouse=True)
def untouched_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command sets threads and niceness of its process; tests share theirs."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "nice", lambda _: 0)
    monkeypatch.setenv("RAYON_NUM_THREADS", os.environ.get("RAYON_NUM_THREADS", "1"))
    yield
    torch.set_num_threads(threads)


def written(folder: Path, **train: Any) -> Path:
    """The small recipe as a file, every value as TOML."""
    raw = raw_recipe()
    raw["train"] |= train
    file = folder / "recipe.toml"
    file.write_text(toml(raw), encoding="utf-8")
    return file


def run(world: World, stage: str, recipe: Path, *more: str) -> int:
    places = ["--data", str(world.data), "--corpus", str(world.corpus), "--work", str(world.work)]
    return command.main([stage, *places, "--recipe", str(recipe), "--threads", "1", *more])


def test_all_when_run_makes_a_model_folder_and_run_again_trains_nothing(world: World, tmp_path: Path) -> None:
    recipe = written(tmp_path)
    assert run(world, "all", recipe, "--out", str(tmp_path / "model")) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    log = (world.work / "train.jsonl").read_bytes()
    assert run(world, "all", recipe, "--out", str(tmp_path / "model")) == 0
    assert (world.work / "train.jsonl").read_bytes() == log


def test_train_when_nothing_is_packed_says_what_to_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world, "train", written(tmp_path)) == 1
    assert "run the stage that writes it" in capsys.readouterr().err


def test_all_when_stopped_in_training_exports_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretraining.trainer.Trainer.run", lambda self, until: False)
    assert run(world, "all", written(tmp_path)) == 0
    assert not (world.work / "export").exists()


def test_recipe_that_ships_when_read_holds_back_what_must_never_be_seen() -> None:
    recipe = read_recipe(command.RECIPE)
    assert {"trec", "subj"} < set(recipe.held_out)
    assert recipe.shape.context >= 512
    assert max(phase.length for phase in recipe.phases) >= 512
    assert not set(recipe.held_out) & {name for source in recipe.sources for name in source.sets}


def test_speed_when_asked_says_parameters_and_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["64x1", "--vocabulary", "300", "--length", "16", "--tokens", "32", "--steps", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["speed", *small])
    speed.main()
    assert "0.1 M parameters" in (said := capsys.readouterr().out)
    assert "tokens/s" in said
