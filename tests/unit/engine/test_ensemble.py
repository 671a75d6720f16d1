from __future__ import annotations

import math

import pytest

from app.engine.answers import Answer, Usage, label_answer
from app.engine.ensemble import mean, vote

USAGE = Usage(10, 2, 5)


def labelled(*probs: float) -> Answer:
    return label_answer(("no", "yes", "maybe")[: len(probs)], [math.log(p) for p in probs], USAGE)


def spoken(text: str) -> Answer:
    return Answer(text, "stop", USAGE, token_ids=(1, 2))


def test_vote_of_labels_takes_the_majority_against_the_mean() -> None:
    answer, agreement = vote([labelled(0.6, 0.4), labelled(0.55, 0.45), labelled(0.01, 0.99)])
    assert (answer.label, answer.text, answer.finish_reason) == ("no", "no", "label")
    assert agreement == pytest.approx(2 / 3)
    assert answer.scores == pytest.approx({"no": 2 / 3, "yes": 1 / 3})
    assert answer.usage == Usage(30, 6, 15)


def test_vote_that_ties_goes_to_the_more_probable_label() -> None:
    assert vote([labelled(0.6, 0.4), labelled(0.1, 0.9)])[0].label == "yes"


def test_vote_of_texts_takes_the_text_given_most_and_the_first_of_equals() -> None:
    answer, agreement = vote([spoken("a"), spoken("b"), spoken(" b ")])
    assert (answer.text, agreement) == ("b", pytest.approx(2 / 3))
    assert vote([spoken("x"), spoken("y")])[0].text == "x"


def test_mean_of_labels_takes_the_highest_mean_probability_and_counts_who_agrees() -> None:
    answer, agreement = mean([labelled(0.6, 0.4), labelled(0.55, 0.45), labelled(0.01, 0.99)])
    assert (answer.label, agreement) == ("yes", pytest.approx(1 / 3))
    assert answer.scores == pytest.approx({"no": 1.16 / 3, "yes": 1.84 / 3})
    assert answer.log_scores == pytest.approx({"no": math.log(1.16 / 3), "yes": math.log(1.84 / 3)})


def test_mean_of_a_label_nobody_gives_any_probability_is_minus_infinity() -> None:
    none = Answer("no", "label", USAGE, label="no", scores={"no": 1.0, "yes": 0.0})
    answer, _ = mean([none, none])
    assert answer.log_scores == {"no": 0.0, "yes": -math.inf}


@pytest.mark.parametrize("members", [[], [spoken("a"), labelled(0.5, 0.5)], [labelled(0.5, 0.5), labelled(1, 1, 1)]])
def test_members_that_differ_in_kind_are_refused(members: list[Answer]) -> None:
    for reduce in (vote, mean):
        with pytest.raises(ValueError, match="ensemble"):
            reduce(members)


def test_mean_of_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="answer_coupled"):
        mean([spoken("a"), spoken("a")])
