"""Vectors left out one by one: which go, where it stops, what is published, and what a budget and a kill do to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from app.backbone import Backbone, LoadedPrompt, Template, load_prompt, parse_template
from app.errors import InvalidPrompt, InvalidTemplate
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.methods.base import Candidate, Judged
from app.training.methods.prune import METHOD, NothingPruned, PruneConfig
from app.training.runs import Judgement
from app.training.session import Context, Session
from app.training.trainer import Interrupted
from prompt_store import PromptStore
from prompt_store import errors as store_errors
from tests.training_data import mood_rows, short_request

WORTH = [0.0, 3.0, -1.0, 0.5, 2.0]
"""Of each vector, which tells its worth itself: how much lower the loss is with it."""


@dataclass
class Worths:
    """Judges a prompt by what its vectors are worth together; `scores` by their number, the last for all fewer."""

    scores: Sequence[float]
    template: Template = field(default_factory=lambda: parse_template("{text} so"))
    rows: Sequence[tuple[str, str | None]] = ()
    label_words: Sequence[str] = ()
    lower_is_better: bool = False
    judged: list[Judged] = field(default_factory=list)
    losses: int = 0

    def version(self, reference: str) -> LoadedPrompt:
        vectors = torch.tensor(WORTH)[:, None].repeat(1, 4)
        template = parse_template("<prompt:2>{text} so<prompt:3>")
        return LoadedPrompt("mood", 1, "d", template, "none", vectors, None, None, ())  # type: ignore[arg-type]

    def judge(self, candidate: Candidate) -> Judgement:
        assert isinstance(candidate.learned, torch.Tensor)
        assert candidate.bos == "none"
        assert len(candidate.learned) == candidate.template.num_virtual_tokens
        score = self.scores[min(5 - len(candidate.learned), len(self.scores) - 1)]
        found = Judgement(score, self._worth(candidate), self.lower_is_better)
        self.judged.append(Judged(candidate, found))
        return found

    def loss(self, candidate: Candidate) -> float:
        self.losses += 1
        return self._worth(candidate)

    def _worth(self, candidate: Candidate) -> float:
        assert isinstance(candidate.learned, torch.Tensor)
        return 10 - float(candidate.learned[:, 0].sum())


def prune(around: Worths, **options: Any) -> tuple[Candidate, dict[str, Any]]:
    config = PruneConfig(source="mood@1", max_evaluations=100, **options)
    METHOD.search(config, around)
    number, details = METHOD.pick(config, around.judged)
    return around.judged[number].candidate, details["pruned"]


def test_vectors_go_in_the_order_of_what_they_are_worth() -> None:
    found, told = prune(Worths([0.9]))
    assert [one["index"] for one in told["dropped"]] == [2, 0, 3, 4]
    assert [round(one["loss_rise"], 4) for one in told["dropped"]] == [-1, 0, 0.5, 2]
    assert found.source == "<prompt:1>{text} so"
    assert (told["before"]["vectors"], told["after"]["vectors"]) == (5, 1)


def test_slots_shrink_where_their_vectors_go_and_vanish_when_empty() -> None:
    around = Worths([0.9])
    prune(around)
    assert [one.candidate.source for one in around.judged] == [
        "<prompt:2>{text} so<prompt:3>",
        "<prompt:2>{text} so<prompt:2>",
        "<prompt:1>{text} so<prompt:2>",
        "<prompt:1>{text} so<prompt:1>",
        "<prompt:1>{text} so",
    ]


@pytest.mark.parametrize(
    ("scores", "options", "left"),
    [
        ([0.9, 0.9, 0.895, 0.5], {}, 3),
        ([0.9, 0.9, 0.895, 0.5], {"max_loss": 0.0}, 4),
        ([0.9, 0.9, 0.895, 0.5], {"max_loss": 0.4}, 1),
        ([0.9, 0.9, 0.895, 0.5], {"min_score": 0.6}, 3),
        ([0.9, 0.8, 0.8, 0.95, 0.1], {}, 2),  # two below by chance, and back
        ([0.9] * 5, {"min_vectors": 3}, 3),
    ],
)
def test_shortest_prompt_whose_score_holds_is_taken(scores: list[float], options: dict[str, Any], left: int) -> None:
    found, told = prune(Worths(scores), **options)
    assert found.template.num_virtual_tokens == left == told["after"]["vectors"]
    assert len(told["dropped"]) == 5 - left


def test_of_a_loss_the_lower_one_holds() -> None:
    found, told = prune(Worths([0.5, 0.505, 0.4, 0.52], lower_is_better=True))
    assert found.template.num_virtual_tokens == 3
    assert told["kept_score"] == pytest.approx(0.51)


def test_search_stops_when_too_many_in_a_row_are_below() -> None:
    around = Worths([0.9, 0.1])
    with pytest.raises(NothingPruned, match=r"mood@1.*0.9000.*0.8900"):
        prune(around)
    assert len(around.judged) == 4


def test_costs_that_do_not_change_are_measured_about_twice_a_vector() -> None:
    around = Worths([0.9])
    prune(around)
    assert around.losses <= 5 + 3 * 4 + 4


def test_max_loss_and_min_score_together_are_refused() -> None:
    with pytest.raises(ValueError, match="either"):
        PruneConfig(max_loss=0.1, min_score=0.5)


def train_source(attempt: Callable[..., Job], **more: Any) -> None:
    attempt(**({"template": "<prompt:4>{text}\nIt was"} | more))


def pruned(**options: Any) -> dict[str, Any]:
    return {"method": {"type": "prune", "max_loss": 1.0, "min_vectors": 2} | options, "hyperparameters": {}}


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_pruned_version_holds_some_of_the_sources_tensors(
    kind: str, attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    train_source(attempt, method={"type": kind})
    job = attempt(**pruned(source="mood:prod"))
    before, after = store.get_version("mood", 1), store.get_version("mood", 2)
    assert job.result is not None
    assert job.result.promoted
    assert after.meta.template == "<prompt:2>{text}\nIt was"
    assert after.meta.verbalizer == before.meta.verbalizer
    assert after.meta.method["source"] == "mood@1"
    assert after.meta.method["max_evaluations"] == 8 * (4 + 1)
    (name, whole), (_, short) = *store.load(before).items(), *store.load(after).items()
    axis = 3 if kind == "prefix_tuning" else 0
    told = after.card[0].details["pruned"]
    gone = {one["index"] for one in told["dropped"]}
    kept = [index for index in range(4) if index not in gone]
    assert np.array_equal(short, whole.take(kept, axis))
    assert {one["part"] for one in told["dropped"]} == {name}
    assert (told["source"], told["before"]["vectors"], told["after"]["vectors"]) == ("mood@1", 4, 2)
    assert after.card[0].details["hyperparameters"]["num_virtual_tokens"] == 2
    assert load_prompt(after, store.load(after), backbone).num_virtual_tokens == 2


def test_prune_without_a_source_takes_what_prod_points_to(attempt: Callable[..., Job], store: PromptStore) -> None:
    train_source(attempt)
    attempt(publish={"when": "never"})
    attempt(**pruned())
    assert store.get_version("mood", 3).meta.method["source"] == "mood@1"


def test_prune_that_may_lose_nothing_fails_and_publishes_nothing(
    attempt: Callable[..., Job], store: PromptStore
) -> None:
    train_source(attempt)
    with pytest.raises(NothingPruned):
        attempt(**pruned(max_loss=None, min_score=2.0))
    versions, _ = store.list_versions("mood")
    assert [version.number for version in versions] == [1]


def test_budget_ends_pruning_with_what_was_found(attempt: Callable[..., Job], store: PromptStore) -> None:
    train_source(attempt)
    attempt(**pruned(max_evaluations=8))  # the whole twice, four without one, the shorter one twice
    assert store.get_version("mood", 2).meta.num_virtual_tokens == 3


def test_pruning_goes_on_after_stops_and_comes_to_the_same(
    attempt: Callable[..., Job], store: PromptStore, jobs: JobStore, context: Context
) -> None:
    train_source(attempt)
    attempt(**pruned(source="mood@1"))
    job, _ = jobs.submit(short_request(**pruned(source="mood@1")))
    for place in range(3):  # stopped behind each of the first judgements
        context.stop.set()
        with pytest.raises(Interrupted):
            Session(context, job.id, context.records.claim(job.id, "here")).run()
        assert context.records.move(job.id, "queued", attempt=place + 1) == "moved"
        context.stop.clear()
    Session(context, job.id, context.records.claim(job.id, "here")).run()
    first, again = store.get_version("mood", 2), store.get_version("mood", 3)
    assert again.card[0].details["pruned"] == first.card[0].details["pruned"]
    assert np.array_equal(store.load(again)["prompt"], store.load(first)["prompt"])


@pytest.mark.parametrize(
    ("request_", "refused", "param"),
    [
        ({"method": {"type": "prune", "source": "mood@7"}}, store_errors.VersionNotFound, "method.source"),
        ({"method": {"type": "prune", "source": "plain"}}, InvalidPrompt, "method.source"),
        ({"method": {"type": "prune"}, "template": "<prompt:4>{text}\nSo:"}, InvalidTemplate, "template"),
        ({"task": "plain", "method": {"type": "prune"}}, InvalidPrompt, "method.source"),
    ],
)
def test_what_cannot_be_pruned_is_refused_at_submission(
    request_: dict[str, Any], refused: type[Exception], param: str, attempt: Callable[..., Job], jobs: JobStore
) -> None:
    train_source(attempt)
    attempt(task="plain", method={"type": "hard", "max_evaluations": 1}, hyperparameters={})
    with pytest.raises(refused) as error:
        jobs.submit(short_request(**({"hyperparameters": {}} | request_)))
    assert error.value.param == param  # type: ignore[attr-defined]


def test_rows_of_validation_data_decide(attempt: Callable[..., Job], store: PromptStore) -> None:
    train_source(attempt)
    attempt(**pruned(), validation_data={"inline": mood_rows(6)})
    (card,) = store.get_version("mood", 2).card
    assert (card.split, card.n) == ("validation", 6)
