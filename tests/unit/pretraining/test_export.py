from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining import export as export_module
from pretraining.checkpoint import checkpoints
from pretraining.errors import RefusedRows, WorkError
from pretraining.export import export, tokens_until, trained_model
from pretraining.objectives.causal import Causal, word_scores
from pretraining.place import Place
from pretraining.recipe import Recipe
from pretraining.rows import Purpose, RowReader
from pretraining.scoring import probe_scores
from pretraining.tokenizer import BOS, load_tokenizer
from pretraining.trainer import Trainer
from tests.unit.pretraining.conftest import World


def place(world: World) -> Place:
    return Place(world.work, world.data)


@pytest.fixture
def trained(packed: World, recipe: Recipe) -> World:
    Trainer(recipe, place(packed), load_tokenizer(packed.work / "tokenizer")).run(until=3)
    return packed


@pytest.mark.parametrize("averaged", [True, False])
def test_export_when_loaded_by_transformers_gives_the_same_logits(
    trained: World, recipe: Recipe, averaged: bool
) -> None:
    folder = export(recipe, place(trained), trained.work / "model", averaged=averaged)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert loaded.config.dtype == torch.float32
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert loaded.config.use_cache
    ours, step = trained_model(recipe, place(trained), averaged=averaged)
    with torch.no_grad():
        for parameter in ours.parameters():  # as far as the file can hold them
            parameter.copy_(parameter.bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the old dog sleeps in the garden", return_tensors="pt").input_ids
    packed_as = load_tokenizer(trained.work / "tokenizer").encode(
        "the old dog sleeps in the garden", add_special_tokens=False
    )
    assert ids[0].tolist() == [BOS, *packed_as.ids]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, ours(input_ids=ids).logits)
    said = json.loads((folder / "provenance.json").read_text())
    assert said["step"] == step == 3
    assert said["tokens_trained"] == 3 * 4 * 48
    assert said["held_out"] == ["trec"]


def test_export_when_asked_for_a_kept_step_is_the_model_of_that_step(packed: World, recipe: Recipe) -> None:
    keeping = replace(recipe, train=replace(recipe.train, keep_at=(0.25, 0.5)))
    run = Trainer(keeping, place(packed), load_tokenizer(packed.work / "tokenizer"))
    run.run(until=3)
    then = {name: value.clone() for name, value in run.average.weights.items()}
    run.run()
    assert [int(file.stem) for file in checkpoints(run.place.checkpoints)][:2] == [3, 6]
    folder = export(keeping, place(packed), packed.work / "quarter", at=3)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert all(torch.equal(value, then[name].bfloat16()) for name, value in loaded.named_parameters())
    assert json.loads((folder / "provenance.json").read_text())["step"] == 3
    with pytest.raises(WorkError, match="no checkpoint of step 4"):
        trained_model(keeping, place(packed), at=4)


def test_checkpoint_when_other_steps_are_to_be_kept_goes_on(trained: World, recipe: Recipe) -> None:
    keeping = replace(recipe, train=replace(recipe.train, keep_at=(0.5,)))
    assert Trainer(keeping, place(trained), load_tokenizer(trained.work / "tokenizer")).step == 3


def test_export_when_a_folder_is_there_replaces_it_whole(trained: World, recipe: Recipe) -> None:
    out = trained.work / "model"
    out.mkdir()
    (out / "old").touch()
    export(recipe, place(trained), out)
    assert not (out / "old").exists()
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o644}
    assert (out / "model.safetensors").is_file()


def test_export_when_the_weights_are_too_large_is_refused_and_leaves_nothing(
    trained: World, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "MAX_BYTES", 1000)
    with pytest.raises(WorkError, match="may ship"):
        export(recipe, place(trained), trained.work / "model")
    assert not (trained.work / "model").exists()
    assert not (trained.work / ".model.part").exists()


def test_export_when_nothing_is_trained_says_so(packed: World, recipe: Recipe) -> None:
    with pytest.raises(WorkError, match="train first"):
        export(recipe, place(packed), packed.work / "model")


def test_tokens_when_phases_change_are_counted_by_their_own_rows(recipe: Recipe) -> None:
    assert [tokens_until(recipe, step) for step in (0, 6, 7, 12)] == [0, 6 * 192, 6 * 192 + 128, 6 * 192 + 6 * 128]


def test_label_scores_when_words_have_several_tokens_are_those_of_the_rows_alone(
    trained: World, recipe: Recipe
) -> None:
    model, _ = trained_model(recipe, place(trained))
    prompts = [[BOS, 7, 8, 9], [BOS, 11], [BOS, 5, 6, 20, 21, 22]]
    words = [[30, 31], [40]]
    with torch.no_grad():
        found = word_scores(model, prompts, words)
        for row, prompt in enumerate(prompts):
            for column, word in enumerate(words):
                logits = model(input_ids=torch.tensor([[*prompt, *word]])).logits[0].log_softmax(-1)
                alone = sum(logits[len(prompt) - 1 + at, token] for at, token in enumerate(word))
                torch.testing.assert_close(found[row, column], alone, atol=1e-4, rtol=0)
        single = word_scores(model, prompts, [[40], [50]])
    torch.testing.assert_close(single[:, 0], found[:, 1], atol=1e-5, rtol=0)


def test_probe_when_asked_reads_dev_rows_and_counts_them(trained: World, recipe: Recipe) -> None:
    model, _ = trained_model(recipe, place(trained))
    tokenizer = load_tokenizer(trained.work / "tokenizer")
    reader = RowReader(trained.data, ())
    found = probe_scores(model, Causal(recipe, tokenizer), recipe.probes[0], reader)
    assert found["rows"] == len(reader.read("sst2", "dev", Purpose.EVALUATE)) == 12
    assert 0 <= found["accuracy"] <= 1
    with pytest.raises(RefusedRows):
        reader.read("sst2", "test", Purpose.EVALUATE)
