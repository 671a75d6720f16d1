"""Words that are looked for: where they stand, which are tried, and what a budget and a kill do to the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.backbone import Backbone, Template, parse_template
from app.errors import InvalidTemplate
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.methods import METHODS, SearchedMethod
from app.training.methods.base import Candidate
from app.training.methods.hard import HardConfig, dress, mine
from app.training.runs import Judgement
from prompt_store import PromptStore
from tests.training_data import mood_rows, short_request

ROWS = [
    ("a wonderful door", "good"),
    ("the terrible door", "bad"),
    ("wonderful lamp", "good"),
    ("terrible lamp", "bad"),
]


@dataclass
class Wishes:
    """Judges a template by how many of the wished words it holds, each once."""

    template: Template
    wished: Sequence[str]
    rows: Sequence[tuple[str, str | None]] = tuple(ROWS)
    label_words: Sequence[str] = (" bad", " good")
    asked: list[str] = field(default_factory=list)

    def judge(self, candidate: Candidate) -> Judgement:
        self.asked.append(candidate.source)
        held, length = self.rank(candidate.source)
        return Judgement(held, -length)

    def rank(self, source: str) -> tuple[float, float]:
        return float(sum(source.count(word) == 1 for word in self.wished)), -float(len(source))

    @property
    def best(self) -> str:
        return max(self.asked, key=self.rank)


def search(wishes: Wishes, **options: Any) -> None:
    method = METHODS["hard"]
    assert isinstance(method, SearchedMethod)
    method.search(HardConfig(**options), wishes)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{text}\nAnswer:", "B {text} E\nAnswer:"),
        ("Q: {a} and {b}?", "B Q: {a} and {b} E?"),
        ("{{x}} {text} {{y}}", "B {{x}} {text} E {{y}}"),
        ("{text}", "B {text} E"),
    ],
)
def test_words_stand_at_the_beginning_and_behind_the_last_field(template: str, wanted: str) -> None:
    assert dress(parse_template(template), "B ", " E").source == wanted


def test_braces_of_a_candidate_stay_text() -> None:
    dressed = dress(parse_template("{text}"), "{text} ", " }{")
    assert dressed.fields == ("text",)
    assert dressed.source == "{{text}} {text} }}{{"


def test_mined_words_are_label_words_then_what_tells_labels_apart_then_what_is_frequent() -> None:
    words = mine(ROWS, [" good", "2"])
    assert words[0] == "good"
    assert set(words[1:3]) == {"terrible", "wonderful"}
    assert {"door", "lamp"} <= set(words[3:])
    assert mine([(text, None) for text, _ in ROWS], [])[:2] == ["door", "lamp"]


def test_search_builds_words_up_while_they_help() -> None:
    wishes = Wishes(parse_template("{text}\nAnswer:"), ["wonderful ", " terrible\n"])
    search(wishes)
    assert wishes.best == "wonderful {text} terrible\nAnswer:"
    assert wishes.asked[0] == "{text}\nAnswer:"


def test_search_without_a_word_that_helps_ends_after_one_round() -> None:
    wishes = Wishes(parse_template("{text}"), [])
    search(wishes, max_words=16)
    assert wishes.best == "{text}"
    assert len(set(wishes.asked)) == 1 + 2 * len(mine(ROWS, wishes.label_words))


def test_search_takes_no_more_words_than_asked() -> None:
    wishes = Wishes(parse_template("{text}"), ["wonderful ", " terrible", "door "])
    search(wishes, max_words=1)
    assert max(source.count(" ") for source in wishes.asked) == 1


def test_candidates_are_tried_as_they_are_and_no_others() -> None:
    wishes = Wishes(parse_template("{text} is"), ["Film"])
    search(wishes, candidates=[("Film: ", ""), ("", " (a book)")])
    assert wishes.asked == ["{text} is", "Film: {text} is", "{text} (a book) is"]


def test_candidate_that_no_template_can_hold_is_named(jobs: JobStore) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        jobs.submit(hard(candidates=[["ok ", ""], ["<prompt:0x", ""]]))
    assert refused.value.param == "method.candidates.1"


def hard(task: str = "mood", **options: Any) -> Any:
    return short_request(task, method={"type": "hard"} | options, hyperparameters={"seed": 1})


def test_winning_words_are_published_without_vectors(attempt: Callable[..., Job], store: PromptStore) -> None:
    candidates = [["Review: ", " It was"], ["", " The opinion is"]]
    job = attempt(method={"type": "hard", "candidates": candidates}, hyperparameters={"seed": 1})
    version = store.get_version("mood", 1)
    allowed = {dress(parse_template("{text}\nAnswer:"), *pair).source for pair in [*candidates, ["", ""]]}
    assert version.meta.template in allowed
    assert (version.meta.num_virtual_tokens, store.load(version)) == (0, {})
    (card,) = version.card
    assert card.details["steps"] == 3
    assert card.score >= card.baselines["zero_shot"]  # the same template without the words
    assert job.result is not None
    assert job.result.promoted


def test_budget_ends_the_search(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt(method={"type": "hard", "max_evaluations": 3}, hyperparameters={"seed": 1})
    assert store.get_version("mood", 1).card[0].details["steps"] == 3


def test_candidate_too_long_for_the_context_is_left_out(
    attempt: Callable[..., Job], store: PromptStore, jobs: JobStore
) -> None:
    long = " ".join(["word"] * 300)
    job = attempt(method={"type": "hard", "candidates": [[long, ""]]}, hyperparameters={"seed": 1})
    assert store.get_version("mood", 1).meta.template == "{text}\nAnswer:"
    assert any("left out" in event.message for event in jobs.events(job.id))


def test_slots_of_the_template_are_left_out(
    attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    attempt(template="<prompt:3>Read: {text}\nSo:", method={"type": "hard", "max_evaluations": 1}, hyperparameters={})
    assert store.get_version("mood", 1).meta.template == "Read: {text}\nSo:"


def test_learning_goes_on_after_a_hard_version(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt(method={"type": "hard", "max_evaluations": 2}, hyperparameters={"seed": 1})
    attempt(training_data={"inline": mood_rows()}, publish={"when": "better_than_current"})
    assert store.get_version("mood", 2).meta.num_virtual_tokens == 4
