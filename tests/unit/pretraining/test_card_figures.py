"""Time, losses and their picture, from logs of any age."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from pretraining import __main__ as command
from pretraining.card.duration import Logged, read_lines, time_taken
from pretraining.card.picture import BINS, curve, loss_picture
from pretraining.card.records import Run
from pretraining.card.results import compute_lines, loss_lines
from pretraining.errors import RecipeError
from pretraining.export import tokens_until
from pretraining.place import Place
from pretraining.recipe import Recipe, read_recipe, recipe_from
from pretraining.tokenizer import load_tokenizer
from pretraining.trainer import PAUSE, Trainer
from tests.unit.pretraining.conftest import World, raw_recipe, shorter

SVG = "{http://www.w3.org/2000/svg}"


def line(step: int, rate: float, **more: Any) -> dict[str, Any]:
    sources = {"wikipedia": {"loss": 2.0 + 8 / step, "answer_loss": None}}
    return {"step": step, "loss": 1.0, "rate": 1.0, "tokens_per_second": rate, "sources": sources, **more}


def by_hundreds(step: int) -> int:
    return 100 * step


def finished_run(recipe: Recipe, lines: list[Logged], step: int | None = None) -> Run:
    at = recipe.train.steps if step is None else step
    return Run(
        recipe=recipe, step=at, tokens=tokens_until(recipe, at), parameters=15_000_000, vocabulary=8192,
        provenance={}, manifest={}, lines=lines, evaluations=[], majority=[], shares={}, prompts=[],
    )  # fmt: skip


# -- time


def test_time_when_every_line_tells_seconds_is_their_sum_and_all_measured() -> None:
    lines = read_lines([line(2, 9.0, tokens=200, seconds=10.0), line(4, 9.0, tokens=200, seconds=30.0)], by_hundreds)
    taken = time_taken(lines, 400)
    assert (taken.seconds, taken.measured, taken.covered) == (40.0, 40.0, 400)
    assert taken.rate == 10.0


def test_time_when_lines_are_of_the_older_form_is_reckoned_from_their_rates(recipe: Recipe) -> None:
    lines = read_lines([line(2, 10.0), line(4, 50.0), line(6, 9.0, tokens=200, seconds=4.0)], by_hundreds)
    assert [one.seconds for one in lines] == [20.0, 4.0, 4.0]
    taken = time_taken(lines, 600)
    assert (taken.seconds, taken.measured) == (28.0, 4.0)


def test_time_when_steps_are_in_no_line_is_reckoned_for_them_at_the_mean_rate_and_said(recipe: Recipe) -> None:
    raw = [line(4, 1.0, tokens=4 * 192, seconds=7200.0), line(12, 1.0, tokens=6 * 128, seconds=7200.0)]
    lines = read_lines(raw, lambda step: tokens_until(recipe, step))
    taken = time_taken(lines, tokens_until(recipe, 12))
    assert taken.measured == 14_400
    assert taken.seconds == pytest.approx(14_400 * 1920 / 1536)
    text = "\n".join(compute_lines(finished_run(recipe, lines)))
    assert "5.0 hours (20 % of the tokens are in no line of the log and reckoned at the mean rate)" in text


def test_machine_when_the_log_names_several_is_told_by_share(recipe: Recipe) -> None:
    raw = [
        line(3, 9.0),
        line(6, 9.0, tokens=3 * 192, seconds=1.0, device="cpu", threads=2),
        line(12, 9.0, tokens=6 * 128, seconds=1.0, device="NVIDIA H100", threads=8),
    ]
    lines = read_lines(raw, lambda step: tokens_until(recipe, step))
    text = "\n".join(compute_lines(finished_run(recipe, lines)))
    assert "NVIDIA H100: 40 % of the tokens; not recorded: 30 % of the tokens; cpu, 2 threads: 30 % of" in text


def test_losses_when_a_source_left_the_mixture_have_no_number_at_the_end(recipe: Recipe) -> None:
    other = {"nli": {"loss": 1.5, "answer_loss": 0.25}}
    raw = [line(2, 9.0), {**line(12, 9.0), "sources": other}]
    run = finished_run(recipe, read_lines(raw, lambda step: tokens_until(recipe, step)))
    text = "\n".join(loss_lines(run, "loss.svg"))
    assert "| wikipedia | 6.00 | – | – |" in text
    assert "| nli | – | 1.50 | 0.25 |" in text
    assert "| reading |" not in text


# -- what training logs for it


def test_log_when_a_run_ends_between_two_lines_covers_every_token_with_its_seconds(
    packed: World, recipe: Recipe
) -> None:
    place = Place(packed.work, packed.data)
    for until in (3, 12):
        Trainer(shorter(recipe, log_every=5), place, load_tokenizer(packed.work / "tokenizer")).run(until=until)
    raw = [json.loads(one) for one in place.log.read_text().splitlines()]
    assert [one["step"] for one in raw] == [3, 5, 10, 12]
    assert sum(one["tokens"] for one in raw) == tokens_until(recipe, 12)
    assert all(one["seconds"] > 0 for one in raw)
    assert {(one["device"], one["threads"]) for one in raw} == {("cpu", torch.get_num_threads())}


def test_log_when_a_run_is_stopped_or_paused_holds_the_steps_before(
    packed: World, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(packed.work, packed.data)
    run = Trainer(shorter(recipe, steps=100_000, log_every=100_000), place, load_tokenizer(packed.work / "tokenizer"))
    pause = packed.work / PAUSE
    paused_at: list[int] = []

    def sleep(_: float) -> None:
        paused_at.append(run.step)
        assert [json.loads(one)["step"] for one in place.log.read_text().splitlines()] == [run.step]
        pause.unlink()

    def pause_then_end() -> None:
        wait_until(lambda: run.step >= 2)
        pause.touch()
        wait_until(lambda: bool(paused_at) and run.step > paused_at[0])
        signal.raise_signal(signal.SIGTERM)

    really_sleep = time.sleep

    def wait_until(holds: Any) -> None:
        while not holds():
            really_sleep(0.005)

    monkeypatch.setattr("pretraining.trainer.time.sleep", sleep)
    thread = threading.Thread(target=pause_then_end)
    thread.start()
    assert not run.run()
    thread.join()
    raw = [json.loads(one) for one in place.log.read_text().splitlines()]
    assert [one["step"] for one in raw] == [*paused_at, run.step]
    assert sum(one["tokens"] for one in raw) == tokens_until(shorter(recipe, steps=100_000), run.step)


# -- the picture


def drawn(run: Run) -> ElementTree.Element:
    return ElementTree.fromstring(loss_picture(run))


def shipped_run(step: int | None = None) -> Run:
    """A whole run of the recipe that ships, with ten sources that end close to each other."""
    recipe = read_recipe(command.RECIPE)
    raw = []
    for at in range(20, (step or recipe.train.steps) + 1, 20):
        phase = next(one for one in recipe.phases if at <= one.until * recipe.train.steps)
        sources = {
            name: {"loss": 1.9 + 0.01 * place + 7 / at**0.5, "answer_loss": None}
            for place, name in enumerate(phase.mixture)
        }
        raw.append({**line(at, 4800.0), "sources": sources})
    return finished_run(recipe, read_lines(raw, lambda at: tokens_until(recipe, at)), step)


def test_picture_when_of_a_whole_run_has_a_line_and_a_name_a_source_and_marks_each_phase() -> None:
    run = shipped_run()
    root = drawn(run)
    words = [one.text or "" for one in root.iter(f"{SVG}text")]
    names = {source.name for source in run.recipe.sources}
    assert {word.removesuffix(" (running text)") for word in words} >= names
    assert len(list(root.iter(f"{SVG}polyline"))) == len(names)
    assert [word for word in words if word.startswith("phase")] == ["phase 1", "phase 2", "phase 3", "phase 4"]
    colours = {one.get("stroke") for one in root.iter(f"{SVG}polyline")}
    assert len(colours) == len(names)
    assert "million tokens" in words


@pytest.mark.parametrize("step", [None, 400, 10_000])
def test_picture_when_drawn_has_no_text_over_another_nor_outside(step: int | None) -> None:
    root = drawn(shipped_run(step))
    width, height = (float(one) for one in (root.get("viewBox") or "").split()[2:])
    boxes = []
    for one in root.iter(f"{SVG}text"):
        long = 7.2 * len(one.text or "")  # wider than any letter but m and w is on the average, at 12 pixels
        x, y = float(one.get("x") or 0), float(one.get("y") or 0)
        left = x - {"start": 0.0, "middle": long / 2, "end": long}[one.get("text-anchor") or "start"]
        boxes.append((left, y - 10, left + long, y + 3))
    assert all(left >= 0 and top >= 0 and right <= width and low <= height for left, top, right, low in boxes)
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_picture_when_the_log_has_one_line_shows_dots() -> None:
    root = drawn(shipped_run(20))
    assert not list(root.iter(f"{SVG}polyline"))
    assert len(list(root.iter(f"{SVG}circle"))) == 10


def test_curve_when_the_log_is_long_is_means_by_tokens_over_few_bins() -> None:
    raw = [line(at, 9.0, tokens=100, seconds=1.0) for at in range(1, 10 * BINS + 1)]
    lines = read_lines(raw, by_hundreds)
    points = curve(lines, "wikipedia", by_hundreds(10 * BINS))
    assert BINS - 1 <= len(points) <= BINS
    assert all(before < after for (before, _), (after, _) in itertools.pairwise(points))
    assert points[0][1] > points[-1][1] > 2.0
    heavy = [replace(lines[0], tokens=300, losses={"wikipedia": 1.0}), replace(lines[1], losses={"wikipedia": 5.0})]
    assert curve(heavy, "wikipedia", 10_000_000) == [(125.0, 2.0)]
    assert curve(lines, "novels", 100) == []


# -- the recipe's words


def test_recipe_that_ships_names_the_origin_and_licence_of_every_text_it_reads() -> None:
    for name in ("chorus.toml", "size-small.toml", "sibling-t5.toml", "sibling-bert.toml"):
        recipe = read_recipe(Path(command.RECIPE).with_name(name))
        texts = {one.name for one in recipe.sources if one.file} | {text for one in recipe.sources for text in one.sets}
        assert {origin.name for origin in recipe.origins} == texts
        assert all(origin.title and origin.licence for origin in recipe.origins)


def test_recipe_when_an_origin_is_of_no_text_is_refused() -> None:
    with pytest.raises(RecipeError, match="no source reads"):
        recipe_from({**raw_recipe(), "origins": {"sst3": {"title": "t", "licence": "l"}}})
