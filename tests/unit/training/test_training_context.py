"""Backbones that learned their positions have no place behind the last one: rows are cut, answers end there."""

from __future__ import annotations

import pytest

from app.backbone import Backbone, Row, default_bos, generate_greedy, parse_template
from app.training.data import Example
from app.training.evaluate import Evaluator
from app.training.examples import Encoder
from app.training.label_words import search_label_words
from app.training.objective import answers
from tests.architectures import build_backbone

LONG = "a word of many " * 800


@pytest.fixture(scope="module")
def learned() -> Backbone:
    return build_backbone("gpt2")


def encoder_of(backbone: Backbone) -> Encoder:
    template = parse_template("{text}\nAnswer:")
    return Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), None, backbone.max_positions)


def test_answer_to_a_row_that_fills_the_context_ends_where_the_context_does(learned: Backbone) -> None:
    encoder = encoder_of(learned)
    short, long = (
        encoder.encode(Example(n, {"text": text}, output="yes")) for n, text in enumerate(("a door", LONG), 1)
    )
    assert long.length == learned.max_positions
    together = answers(learned, None, [long, short], max_tokens=12)
    assert together[1] == answers(learned, None, [short], max_tokens=12)[0]
    assert together[0] == answers(learned, None, [long], max_tokens=len(long.answer))[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "t5"])
def test_rows_with_room_of_their_own_write_together_what_they_write_alone(name: str) -> None:
    backbone = build_backbone(name)
    rows = [Row((5, 6, 7, 8)[:n]) for n in (4, 2, 3, 1)]
    most = [3, 9, 1, 6]
    alone = [generate_greedy(backbone, [row], [None], max_tokens=n)[0] for row, n in zip(rows, most, strict=True)]
    together = generate_greedy(backbone, rows, [None] * 4, max_tokens=most)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert all(len(one.tokens) <= n for one, n in zip(together, most, strict=True))


def test_free_text_with_a_row_that_is_cut_to_the_context_is_judged(learned: Backbone) -> None:
    rows = [Example(n, {"text": text}, output="yes") for n, text in enumerate(("a door", LONG), 1)]
    found = Evaluator(learned, encoder_of(learned), "rouge_l", max_tokens=12, seed=0).measure(None, rows)
    assert found.n == 2


def test_search_for_label_words_cuts_a_row_longer_than_the_context(learned: Backbone) -> None:
    texts = ("a door", LONG, "a lamp", "a table")
    rows = [Example(n, {"text": text}, label=("bad", "good")[n % 2]) for n, text in enumerate(texts, 1)]
    assert set(search_label_words(learned, encoder_of(learned), ("bad", "good"), rows)) == {"bad", "good"}
