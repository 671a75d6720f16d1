"""Promises of a comparison: one budget for all, test rows asked once, finished work never done twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.compare import comparison as module
from app.compare.ablations import ablate, variations
from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.comparison import Comparison, TimeIsUp
from app.compare.contestants import CONTESTANTS, choose
from app.compare.report import document
from app.compare.run import Wanted, run
from app.compare.tasks import Limits, TaskFiles
from app.compare.together import serve
from app.errors import Conflict, InvalidRequest
from app.training.methods import METHODS
from tests.architectures import own_copy
from tests.training_data import mood_rows
from tests.unit.compare.conftest import BUDGET, fresh, mood_task


def test_every_method_of_training_is_compared() -> None:
    assert {one.config["type"] for one in CONTESTANTS if one.is_prompt} == set(METHODS) - {"prune"}


def test_unknown_method_is_named_with_those_there_are() -> None:
    with pytest.raises(InvalidRequest, match="'adapters'; there are majority"):
        choose(["full", "adapters"])


def test_grid_and_steps_are_the_same_for_all_that_is_trained(
    make: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: Counter[str] = Counter()
    whole = module.Comparison._fit

    def counted(self: Comparison, setting: Any, contestant: Any, times: float, seed: int) -> Any:
        steps[contestant.name] += self.budget.steps
        return whole(self, setting, contestant, times, seed)

    monkeypatch.setattr(module.Comparison, "_fit", counted)
    comparison = make("prompt_tuning", "full", "lora", "last_layers", "prefix_tuning")
    comparison.run()
    assert set(steps.values()) == {BUDGET.steps * len(BUDGET.grid)}
    assert len(steps) == 5
    points = comparison.cells.all("point")
    assert Counter(one["key"][1] for one in points) == dict.fromkeys(steps, 2)
    for name in steps:
        rates = [next(iter(one["rates"].values())) for one in points if one["key"][1] == name]
        assert rates[1] / rates[0] == pytest.approx(4.0)


def test_all_trained_contestants_see_the_same_rows_in_the_same_order(
    make: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.training.runs import Run

    seen: dict[str, list[list[int]]] = {}
    plain = Run.next_batch

    def told(self: Run) -> Any:
        batch = plain(self)
        seen.setdefault(type(self).__name__, []).append([one.example.row for one in batch])
        return batch

    monkeypatch.setattr(Run, "next_batch", told)
    make("prompt_tuning", "full", budget=Budget(steps=4, batch_size=4, grid=(1.0,))).run()
    assert seen["Run"] == seen["WeightsRun"]
    assert len(seen["Run"]) == 4


def test_second_run_trains_nothing_that_is_finished(
    make: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("majority", "prompt_tuning", "full").run()
    lines = len((make().cells.folder / "cells.jsonl").read_text().splitlines())

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "fit_prompt", never)
    monkeypatch.setattr(module, "fit_weights", never)
    again = make("majority", "prompt_tuning", "full")
    again.run()
    assert len((again.cells.folder / "cells.jsonl").read_text().splitlines()) == lines


def test_interrupted_grid_goes_on_with_the_run_that_is_missing(
    make: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = module.fit_prompt, []

    def once(*of: Any, **more: Any) -> Any:
        calls.append(more["times"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*of, **more)

    monkeypatch.setattr(module, "fit_prompt", once)
    with pytest.raises(KeyboardInterrupt):
        make("prompt_tuning").run()
    comparison = make("prompt_tuning")
    comparison.run()
    assert calls == [0.5, 2.0, 2.0]
    assert comparison.cells.get("result", "mood", "prompt_tuning") is not None


def test_hand_written_and_searched_words_are_chosen_on_dev_rows(make: Callable[..., Comparison]) -> None:
    comparison = make("few_shot", "hard")
    comparison.run()
    few, hard = (comparison.cells.get("result", "mood", name) for name in ("few_shot", "hard"))
    assert few is not None
    assert hard is not None
    assert few["tries"] == len(BUDGET.grid)
    assert few["template"].count("Answer:") == BUDGET.shots + 1
    zero = make("zero_shot").settings["mood"].judge(comparison.settings["mood"].bare)(None)
    assert hard["dev"] >= zero.score
    assert (few["trained"], hard["trained"]) == (0, 0)


def test_deadline_lets_no_run_begin(make: Callable[..., Comparison]) -> None:
    comparison = make("majority", "prompt_tuning", deadline=0.0)
    with pytest.raises(TimeIsUp):
        comparison.run()
    assert [one["key"][1] for one in comparison.cells.all("result")] == ["majority"]


def test_choice_is_made_by_dev_rows_and_only_its_tensors_stay(make: Callable[..., Comparison]) -> None:
    comparison = make("prompt_tuning")
    comparison.run()
    points = {one["times"]: one for one in comparison.cells.all("point")}
    result = comparison.cells.get("result", "mood", "prompt_tuning")
    assert result is not None
    best = max(points.values(), key=lambda one: (one["dev"], -one["dev_loss"]))
    assert result["times"] == best["times"]
    assert [file.stem for file in (comparison.cells.folder / "tensors").iterdir()] == [best["tensors"]]


def test_contestant_that_cannot_run_is_left_out_with_the_reason(make: Callable[..., Comparison]) -> None:
    comparison = make("spot", "prefix_tuning", tasks=[mood_task(template="{text}<prompt:3>\nAnswer:")])
    comparison.run()
    found = document(comparison.cells)["tasks"]["mood"]["contestants"]
    assert "no other task" in found["spot"]["left_out"]
    assert "very beginning" in found["prefix_tuning"]["left_out"]


def test_encoder_decoder_is_compared_by_what_it_can_learn(make: Callable[..., Comparison]) -> None:
    comparison = make("zero_shot", "few_shot", "prompt_tuning", "prefix_tuning", "full", load=lambda: own_copy("t5"))
    comparison.run()
    serve(comparison)
    found = document(comparison.cells)["tasks"]["mood"]["contestants"]
    assert {name for name, one in found.items() if "test" in one} == {"zero_shot", "prompt_tuning", "prefix_tuning"}
    assert found["prefix_tuning"]["requests_s"] > 0


def test_spot_begins_as_the_other_tasks_prompt(make: Callable[..., Comparison]) -> None:
    comparison = make("prompt_tuning", "spot", tasks=[mood_task("one"), mood_task("two", count=40)])
    comparison.run()
    assert all("given" in one for one in comparison.cells.all("result"))
    assert set(comparison._others("one")) == {"two"}


def test_ensemble_is_the_mean_of_its_members_probabilities(make: Callable[..., Comparison]) -> None:
    comparison = make("ensemble")
    comparison.run()
    result = comparison.cells.get("result", "mood", "ensemble")
    assert result is not None
    assert len(result["members"]) == len(result["tensors"]) == 2
    setting = comparison.settings["mood"]
    prompts = [comparison.cells.tensors(tuple(name.split("--"))) for name in result["tensors"]]
    mean = torch.stack([setting.probabilities(of["prompt"], setting.encoder) for of in prompts if of]).mean(0)
    assert result["given"] == [("bad", "good")[k] for k in mean.argmax(1).tolist()]
    pairs = document(comparison.cells)["tasks"]["mood"]["pairs"]["ensemble_vs_members"]
    assert pairs["mean"] == pytest.approx(sum(pairs["members"]) / 2)


def test_prompts_of_all_tasks_are_served_in_one_mixed_batch(make: Callable[..., Comparison]) -> None:
    comparison = make("prompt_tuning", "zero_shot", tasks=[mood_task("one"), mood_task("two", count=40)])
    comparison.run()
    serve(comparison)
    served = {one["key"][0]: one for one in comparison.cells.all("served")}
    assert set(served) == {"prompt_tuning", "zero_shot"}
    assert all(one["tasks"] == ["one", "two"] and one["requests_s"] > 0 for one in served.values())


def test_ablation_changes_one_thing_at_a_time_and_is_not_run_twice(make: Callable[..., Comparison]) -> None:
    task = mood_task()
    found = {axis: [one.value for one in variations(task, [axis], {})] for axis in ("length", "init", "rows")}
    assert found == {
        "length": ["1", "5", "20", "100"],
        "init": ["random", "vocab", "labels", "text"],
        "rows": ["16"],
    }
    comparison = make("majority")
    ablate(comparison, ["length", "backbone"], ["mood"], backbones={"other": fresh})
    measured = {tuple(one["key"]): one for one in comparison.cells.all("ablation")}
    assert measured["mood", "length", "5", "0"]["trained"] == 5 * 64
    assert ("mood", "backbone", "other", "0") in measured
    lines = (comparison.cells.folder / "cells.jsonl").read_text()
    ablate(comparison, ["length", "backbone"], ["mood"], backbones={"other": fresh})
    assert (comparison.cells.folder / "cells.jsonl").read_text() == lines


def test_command_from_files_to_page_and_back(tmp_path: Path) -> None:
    data = tmp_path / "mood.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in mood_rows(60)), encoding="utf-8")
    wanted = Wanted(
        files=[TaskFiles(name="mood", data=data)],
        model="llama",
        budget=BUDGET,
        limits=Limits(),
        out=tmp_path / "out",
        methods=("majority", "prompt_tuning", "full"),
        ablate=("length",),
    )
    said: list[str] = []
    assert run(wanted, tell=said.append, load=fresh)
    page = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    contestants = found["tasks"]["mood"]["contestants"]
    assert list(contestants) == ["majority", "prompt_tuning", "full"]
    assert contestants["full"]["trained"] > 100 * contestants["prompt_tuning"]["trained"]
    assert contestants["prompt_tuning"]["requests_s"] > 0
    assert contestants["full"]["cpu_seconds"] > 0
    assert "| full fine-tuning |" in page
    assert "beside full fine-tuning:" in page
    assert "a grid of 2 learning rates (0.5, 2 times its own)" in page
    assert {file.name for file in (tmp_path / "out" / "comparison").iterdir()} == {
        *("mood.svg", "mood-bytes.svg", "by-length.svg")
    }
    assert run(wanted, tell=said.append, load=fresh)
    with pytest.raises(Conflict):
        run(Wanted(wanted.files, "llama", Budget(steps=9), Limits(), wanted.out), load=fresh)


def test_free_text_is_compared_by_rouge_and_bleu(tmp_path: Path) -> None:
    data = tmp_path / "say.jsonl"
    rows = [{"input": f"name {n}", "output": f"this one is number {n} of all"} for n in range(40)]
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    wanted = Wanted(
        files=[TaskFiles(name="say", data=data)],
        model="llama",
        budget=Budget(steps=2, batch_size=4, grid=(1.0,)),
        limits=Limits(),
        out=tmp_path / "out",
        methods=("prompt_tuning", "prefix_tuning", "full", "ensemble"),
    )
    assert run(wanted, tell=lambda _: None, load=fresh)
    found = document(Cells(wanted.out))["tasks"]["say"]["contestants"]
    assert set(found["full"]["test"]) == set(found["prefix_tuning"]["test"]) == {"rouge_l", "bleu"}
    assert "labels" in found["ensemble"]["left_out"]
