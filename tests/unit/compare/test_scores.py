"""Promises of the scores: exact on small data, intervals that hold the score, pairs on the same rows."""

from __future__ import annotations

import numpy as np
import pytest

from app.compare.bleu import bleu, counts, words
from app.compare.scores import compare, mean_of_members, measured, score


def test_score_of_labels_is_the_share_of_right_ones() -> None:
    found = score("accuracy", [("a",), ("b",), ("b",), ("a",)], ["a", "b", "a", "a"])
    assert list(found) == ["accuracy"]
    assert found["accuracy"].value == 0.75
    low, high = found["accuracy"].interval
    assert low <= 0.75 <= high


def test_score_of_texts_takes_the_best_reference() -> None:
    found = score("rouge_l", [("a b c d", "the cat sat down")], ["the cat sat down"])
    assert found["rouge_l"].value == 1.0
    assert found["bleu"].value == pytest.approx(1.0)


def test_words_are_cut_as_mteval_does() -> None:
    assert words('He said "yes", at 3.5 - or 1-2.') == [
        *("He", "said", '"', "yes", '"', ",", "at", "3.5", "-", "or", "1", "-", "2", ".")
    ]


def test_bleu_is_that_of_the_papers_counts() -> None:
    # 7 words of which 6, 4, 2, 1 n-grams match; the references' closest length is 7: no brevity penalty
    rows = counts([["the cat sat on the mat ."]], ["the cat sat on a mat ."])
    assert rows.tolist() == [[7, 7, 6, 4, 2, 1, 7, 6, 5, 4]]
    assert bleu(rows) == pytest.approx((6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)


def test_bleu_of_a_missing_order_is_smoothed_and_of_a_short_text_is_punished() -> None:
    rows = counts([["a b c d e f g h"]], ["a b x c d"])
    assert rows.tolist() == [[5, 8, 4, 2, 0, 0, 5, 4, 3, 2]]
    expected = (4 / 5 * 2 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** 0.25 * np.exp(1 - 8 / 5)
    assert bleu(rows) == pytest.approx(expected)
    assert bleu(counts([["a b c d"]], ["x y z w"])) == 0.0


def test_pair_of_equal_answers_is_a_draw_and_of_better_ones_a_gain() -> None:
    references = [("a",)] * 40
    good, poor = (measured("accuracy", references, of) for of in (["a"] * 40, ["a"] * 10 + ["b"] * 30))
    draw = compare(good, good)
    assert (draw.gain, draw.interval, draw.certainty) == (0.0, (0.0, 0.0), 0.0)
    gain = compare(good, poor)
    assert gain.gain == 0.75
    assert gain.interval[0] > 0.5
    assert gain.certainty == 1.0


def test_mean_of_members_is_the_mean_of_their_scores() -> None:
    references = [("a",), ("a",), ("b",), ("b",)]
    members = [["a", "a", "b", "b"], ["a", "b", "a", "b"], ["b", "b", "a", "a"]]
    found = mean_of_members("accuracy", references, members)
    assert found.score == pytest.approx(0.5)
    assert found.n == 4
