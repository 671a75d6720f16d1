from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from app.backbone import Backbone, compile_verbalizer, default_bos, parse_template, score_labels
from app.errors import InvalidVerbalizer
from app.training.data import Example
from app.training.examples import Encoder
from app.training.job import Job
from app.training.label_words import WORDS, search_label_words
from app.training.planning import Planner
from prompt_store import PromptStore, TaskSpec
from tests.training_data import mood_request, mood_rows

LABELS = ("bad", "good")


def encoder_of(backbone: Backbone) -> Encoder:
    template = parse_template("{text}\nIn one word:")
    return Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), None, 128)


def examples(count: int = 32) -> list[Example]:
    return [
        Example(row=i, fields={"text": row["text"]}, label=row["label"]) for i, row in enumerate(mood_rows(count), 1)
    ]


def loss(backbone: Backbone, words: dict[str, tuple[str, ...]], rows: list[Example]) -> float:
    encoder = encoder_of(backbone)
    verbalizer = compile_verbalizer(backbone.tokenizer, words)
    encoded = encoder.encode_inputs([row.fields for row in rows])
    with torch.no_grad():
        scores = score_labels(backbone, [one.row for one in encoded], [None] * len(rows), [verbalizer] * len(rows))
    wanted = torch.tensor([LABELS.index(str(row.label)) for row in rows])
    return float(torch.nn.functional.cross_entropy(torch.stack(scores), wanted))


def test_found_words_tell_the_labels_apart_better_than_the_labels_names(backbone: Backbone) -> None:
    rows = examples()
    found = search_label_words(backbone, encoder_of(backbone), LABELS, rows)
    named = {label: (f" {label}",) for label in LABELS}
    assert loss(backbone, found, rows) < loss(backbone, named, rows)


def test_found_words_are_words_of_one_token_and_no_two_labels_share_one(backbone: Backbone) -> None:
    found = search_label_words(backbone, encoder_of(backbone), LABELS, examples())
    every = [word for words in found.values() for word in words]
    assert len(every) == len(set(every))
    assert all(1 <= len(words) <= WORDS for words in found.values())
    for word in every:
        assert word.startswith(" ")
        assert word.strip().isalpha()
        assert len(backbone.tokenizer.encode_continuation(word)) == 1


def test_a_search_gives_the_same_words_again(backbone: Backbone) -> None:
    first, again = (search_label_words(backbone, encoder_of(backbone), LABELS, examples()) for _ in range(2))
    assert first == again


def test_a_label_without_rows_cannot_be_searched_for(backbone: Backbone, store: PromptStore, planner: Planner) -> None:
    with pytest.raises(ValueError, match="without a row"):
        search_label_words(backbone, encoder_of(backbone), (*LABELS, "absent"), examples())
    store.put_task("mood", TaskSpec(fields=("text",), labels=("bad", "good", "mixed")))
    with pytest.raises(InvalidVerbalizer, match="no training row has the label `mixed`"):
        planner.plan(mood_request(verbalizer="search"))


def test_a_job_that_searches_publishes_the_words_it_found(attempt: Callable[..., Job], store: PromptStore) -> None:
    job = attempt(verbalizer="search", template="<prompt>{text}\nIn one word:")
    assert job.status == "succeeded"
    meta = store.get_version("mood", 1).meta
    assert meta.verbalizer is not None
    assert set(meta.verbalizer) == set(LABELS)
    assert meta.verbalizer != {label: (f" {label}",) for label in LABELS}


def test_a_search_for_a_free_text_task_is_refused(planner: Planner) -> None:
    rows = [{"text": f"a {number}", "output": "b"} for number in range(6)]
    with pytest.raises(InvalidVerbalizer, match="free-text"):
        planner.plan(mood_request(training_data={"inline": rows}, verbalizer="search"))
