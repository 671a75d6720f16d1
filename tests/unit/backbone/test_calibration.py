"""Contextual calibration and ECE against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.backbone.calibration import (
    CONTENT_FREE,
    ECE_BINS,
    calibrate,
    content_free_inputs,
    content_free_prior,
    expected_calibration_error,
)

THREE_OF_FOUR = np.log([0.75, 0.25])


def test_content_free_inputs_put_each_text_into_every_field() -> None:
    assert content_free_inputs(("premise", "hypothesis")) == [
        {"premise": "N/A", "hypothesis": "N/A"},
        {"premise": "", "hypothesis": ""},
        {"premise": "[MASK]", "hypothesis": "[MASK]"},
    ]
    assert len(CONTENT_FREE) == 3


def test_prior_is_the_mean_of_the_probabilities_whatever_the_offset_of_the_scores() -> None:
    scores = [np.log([0.9, 0.1]) - 7, np.log([0.6, 0.4]) + 3, np.log([0.3, 0.7])]
    assert np.exp(content_free_prior(scores)) == pytest.approx([0.6, 0.4])


def test_calibrate_divides_by_the_prior_and_normalises() -> None:
    # p = (0.75, 0.25), p_cf = (0.9, 0.1): p / p_cf = (5/6, 5/2), which sums to 10/3
    assert np.exp(calibrate(THREE_OF_FOUR - 4, np.log([0.9, 0.1]))) == pytest.approx([0.25, 0.75])


def test_calibrate_of_a_content_free_input_alone_gives_equal_probabilities() -> None:
    scores = np.asarray([[-3.0, -1.0, -9.0]])
    assert np.exp(calibrate(scores, content_free_prior(scores))) == pytest.approx(np.full((1, 3), 1 / 3))


def test_calibrate_with_a_prior_far_below_the_smallest_float_stays_finite() -> None:
    prior = content_free_prior([[0.0, -2000.0]])
    assert calibrate([0.0, -2000.0], prior) == pytest.approx(np.log([0.5, 0.5]))


def test_ece_of_one_confidence_is_its_distance_from_the_accuracy() -> None:
    rows = np.tile(THREE_OF_FOUR, (4, 1))
    assert expected_calibration_error(rows, [0, 0, 0, 1]) == pytest.approx(0.0)
    assert expected_calibration_error(rows, [0, 1, 1, 1]) == pytest.approx(0.5)


def test_ece_weighs_bins_by_their_rows() -> None:
    # one row at 0.9 and wrong (gap 0.9), three at 0.6 and right (gap 0.4): 0.25 * 0.9 + 0.75 * 0.4
    rows = np.log([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(rows, [1, 0, 0, 0]) == pytest.approx(0.525)


def test_ece_keeps_gaps_of_different_bins_apart_and_lets_those_of_one_bin_cancel() -> None:
    width = 1 / ECE_BINS
    low, high = 10 * width + 0.2 * width, 10 * width + 0.8 * width  # one bin
    together = np.log([[low, 1 - low], [high, 1 - high]])
    assert expected_calibration_error(together, [0, 1]) == pytest.approx(abs(1 - low - high) / 2)
    apart = np.log([[low, 1 - low], [high + width, 1 - high - width]])
    assert expected_calibration_error(apart, [0, 1]) == pytest.approx((1 - low + high + width) / 2)


def test_ece_counts_a_probability_of_one_in_the_last_bin() -> None:
    assert expected_calibration_error([[0.0, -1000.0]], [0]) == 0.0
