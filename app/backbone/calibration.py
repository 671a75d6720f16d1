"""How far label probabilities can be believed, and a correction that needs no labelled row.

**Contextual calibration** (Zhao et al. 2021, arXiv 2102.09690, §5): a prompt that is asked about nothing still prefers
some labels. Its probabilities on inputs without content (`N/A`, the empty text, `[MASK]`) are averaged to p_cf, and
every answer's probabilities are divided by it: p' ∝ p / p_cf.

**Expected calibration error** (Guo et al. 2017, arXiv 1706.04599, §2): the answers sorted by the probability of the
label given, in 15 bins of equal width; the mean distance of a bin's accuracy from its mean probability, by its rows.

Pure functions of log-scores, any offset; serving and training share them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONTENT_FREE = ("N/A", "", "[MASK]")
"""The paper's texts without content."""

ECE_BINS = 15


def content_free_inputs(fields: Sequence[str]) -> list[dict[str, str]]:
    """Each text without content, in every field at once."""
    return [dict.fromkeys(fields, text) for text in CONTENT_FREE]


def content_free_prior(log_scores: npt.ArrayLike) -> Floats:
    """log p_cf [K] from the log-scores of the content-free inputs [C, K]: the mean of their probabilities."""
    log_probabilities = _log_softmax(np.asarray(log_scores, np.float64))  # [C, K]
    mean: Floats = np.logaddexp.reduce(log_probabilities, axis=0) - np.log(len(log_probabilities))
    return mean


def calibrate(log_scores: npt.ArrayLike, prior: npt.ArrayLike) -> Floats:
    """Log-probabilities [..., K] after contextual calibration: log p - log p_cf, normalised."""
    return _log_softmax(np.asarray(log_scores, np.float64) - np.asarray(prior, np.float64))


def expected_calibration_error(log_scores: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """ECE of the best labels of `log_scores` [N, K] where the labels with the indexes `expected` [N] are right.

    Bin m of M holds probabilities in ((m - 1) / M, m / M]. Needs at least one row.
    """
    probabilities = np.exp(_log_softmax(np.asarray(log_scores, np.float64)))
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(expected)
    places = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(places, weights=right - confidence, minlength=ECE_BINS)  # rows of a bin times its gap
    return float(np.abs(gaps).sum() / len(confidence))


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised
