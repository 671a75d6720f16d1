"""Metrics against values worked out by hand or published."""

from __future__ import annotations

import numpy as np
import pytest

from app.training.metrics import accuracy, bootstrap, exact_match, macro_f1, rouge_l, wilson


def test_accuracy_counts_equal_answers() -> None:
    assert accuracy(["a", "b", "b", "c"], ["a", "b", "c", "c"]) == 0.75


def test_macro_f1_is_the_mean_over_the_labels_expected() -> None:
    # a: 1 of 1 claimed, 1 of 2 present -> 2/3; b: 1 of 3 claimed, 1 of 1 present -> 1/2
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert macro_f1(["a", "b"], ["c", "c"]) == 0.0


def test_exact_match_ignores_white_space_alone() -> None:
    assert exact_match("New York", " New  York\n") == 1.0
    assert exact_match("New York", "new york") == 0.0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l("the cat sat down", "The cat lay down.") == pytest.approx(0.75)
    assert rouge_l("a b c d", "d") == pytest.approx(2 / 5)
    assert rouge_l("a", "b") == 0.0
    assert rouge_l("", "") == 0.0


def test_wilson_matches_a_published_example() -> None:
    assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))  # Newcombe 1998
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0)


def test_bootstrap_covers_the_mean_and_is_repeatable() -> None:
    values = np.arange(100) / 100
    low, high = bootstrap(100, lambda at: float(values[at].mean()))
    assert low < values.mean() < high
    assert bootstrap(100, lambda at: float(values[at].mean())) == (low, high)
