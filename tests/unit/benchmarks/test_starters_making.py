"""One starter from its training to its files, on a service that is a fake; and what the command refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.running import Running
from benchmarks.starters import RECIPES, Recipe
from benchmarks.starters.__main__ import ask_again, main, make_starter
from benchmarks.starters.rows import Split
from benchmarks.starters.training import Trainer
from prompt_store import BackboneRef, BlobStore, Evaluation, MemoryMetadata, PromptMeta, PromptStore, Version
from prompt_store.starters import read_starters, write_starter

TELL = Recipe("tell", ("t",), "t", "<prompt:2>{input}\nTell:", None, 4, "Tell it.", "Ours", "few rows")
MOOD = Recipe("mood", ("m",), "m", "<prompt:2>{text}\nMood:", {"good": " good", "bad": " bad"}, 4, "A mood?", "Ours")
SPLITS = {
    "tell": Split(
        train=[{"input": "name[A]", "output": "A."}] * 4,
        dev=[{"input": "name[B]", "output": "B."}],
        test=[{"input": "name[Zoe]", "references": ["Zoe has fish for us.", "Zoe!"]}],
    ),
    "mood": Split(
        train=[{"text": "a", "label": "good"}] * 4,
        dev=[{"text": "b", "label": "bad"}],
        test=[{"text": "c", "label": "good"}, {"text": "d", "label": "bad"}],
    ),
}


def published(folder: Path, recipe: Recipe) -> Version:
    """A version in a store whose blobs lie where a service keeps them."""
    meta = PromptMeta(
        task=recipe.task,
        template=recipe.template,
        bos="none",
        method={"type": "prompt_tuning"},
        backbone=BackboneRef(name="b", fingerprint="f" * 64, hidden_size=4),
        num_virtual_tokens=2,
    )
    card = Evaluation(metric="loss", score=1.0, n=1, interval=(1.0, 1.0), split="validation", at=0.0)
    tensors = {"prompt": np.ones((2, 4), np.float32)}
    with PromptStore(MemoryMetadata(), BlobStore(folder / "blobs")) as store:
        return store.publish(
            task=recipe.task, meta=meta, tensors=tensors, publication="p", spec=recipe.spec(), card=[card]
        ).version


@pytest.mark.parametrize("recipe", [TELL, MOOD])
def test_make_starter_writes_blob_task_and_a_card_that_ends_with_the_test_rows(recipe: Recipe, tmp_path: Path) -> None:
    version = published(tmp_path / "data", recipe)
    put: dict[str, Any] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "PUT":
            put[path] = request.content
            return httpx.Response(200, json={})
        if path == "/v1/train":
            return httpx.Response(202, json={"id": "j"})
        if path == "/v1/train/j":
            return httpx.Response(200, json={"status": "succeeded", "result": {"version": version.number}})
        if path == "/v1/generate":
            asked = json.loads(request.content)["requests"]
            assert {one["task"] for one in asked} <= {recipe.task, f"{recipe.task}@9"}
            return httpx.Response(
                200, json={"outputs": [{"text": "Zoe has fish for us.", "label": "good"}] * len(asked)}
            )
        if path == f"/v1/tasks/{recipe.task}/versions":
            assert json.loads(request.content)["alias"] is None
            return httpx.Response(201, json={"version": 9})
        assert path == f"/v1/tasks/{recipe.task}/versions/{version.number}"
        return httpx.Response(200, json=version.model_dump(mode="json"))

    client = httpx.Client(base_url="http://h", transport=httpx.MockTransport(answer))
    running = Running("http://h", tmp_path / "data", 0)
    make_starter(running, Trainer(client, "once"), recipe, SPLITS[recipe.task], tmp_path / "out")
    (starter,) = read_starters(tmp_path / "out")
    assert json.loads(put[f"/v1/tasks/{recipe.task}"]) == recipe.spec().model_dump(mode="json")
    assert (starter.task, starter.spec, starter.meta) == (recipe.task, recipe.spec(), version.meta)
    trained, tested = starter.card
    assert (trained.split, tested.split) == ("validation", "test")
    assert (tested.metric, tested.score) == (("rouge_l", 1.0) if recipe is TELL else ("accuracy", 0.5))
    assert tested.baselines["zero_shot"] == tested.score
    assert tested.details.get("caution", "") == recipe.caution
    shipped = b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
    assert b"Zoe" not in shipped  # no row of the data


def test_asking_again_changes_what_the_card_says_of_the_test_rows_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = published(tmp_path / "data", MOOD)
    blob = (tmp_path / "data" / "blobs" / "blobs" / f"{version.digest}.safetensors").read_bytes()
    stale = version.card[0].model_copy(update={"metric": "accuracy", "split": "test", "details": {"hits": 1}})
    write_starter(version, MOOD.spec(), blob, card=[*version.card, stale], folder=tmp_path / "shipped")
    (before,) = read_starters(tmp_path / "shipped")

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/tasks/mood/versions":
            return httpx.Response(201, json={"version": 2})
        asked = json.loads(request.content)["requests"]
        labels = ["good", "bad"] if asked[0]["task"] == "mood" else ["bad", "bad"]
        return httpx.Response(200, json={"outputs": [{"label": label} for label in labels]})

    monkeypatch.setattr("benchmarks.starters.__main__.rows_of", lambda recipe, data, corpus: SPLITS[recipe.task])
    client = httpx.Client(base_url="http://h", transport=httpx.MockTransport(answer))
    ask_again(client, [TELL, MOOD], tmp_path, None, tmp_path / "shipped")
    (after,) = read_starters(tmp_path / "shipped")
    assert (after.data, after.spec, after.card[:-1]) == (before.data, before.spec, before.card[:-1])
    assert (after.card[-1].score, after.card[-1].baselines) == (1.0, {"majority": 0.5, "zero_shot": 0.5})


@pytest.mark.parametrize("given", [[], ["--again", "--page", "p.md"]])
def test_command_without_data_or_anything_to_write_says_what_it_needs(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(given)
    assert "--data DIR" in capsys.readouterr().err


def test_command_writes_the_table_of_the_shipped_without_training(tmp_path: Path) -> None:
    file = tmp_path / "r.md"
    file.write_text("<!-- starters -->\n<!-- /starters -->\n", encoding="utf-8")
    main(["--table", str(file), "--page", str(tmp_path / "p.md")])
    assert "| sentiment | sst2" in file.read_text(encoding="utf-8")
    assert "## sentiment" in (tmp_path / "p.md").read_text(encoding="utf-8")


def test_command_for_a_corpus_task_without_the_corpus_asks_for_it(tmp_path: Path) -> None:
    task = next(recipe.task for recipe in RECIPES if recipe.from_corpus)
    with pytest.raises(SystemExit, match="--corpus"):
        main(["--data", str(tmp_path), "--task", task])
