"""Records written before a field existed still read, and what a field may hold."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prompt_store import Calibration, Evaluation, TaskSpec

OLD_SPEC = (
    '{"description":"","fields":["text"],"labels":["a","b"],"metric":"accuracy",'
    '"decoding":{"max_tokens":32,"temperature":0.0,"top_p":1.0,"top_k":0,"stop":[]}}'
)
OLD_EVALUATION = (
    '{"metric":"accuracy","score":0.5,"n":4,"interval":[0.1,0.9],"split":"dev","baselines":{},"at":1.0,"details":{}}'
)


def test_task_spec_of_an_older_release_reads_and_always_answers() -> None:
    assert TaskSpec.model_validate_json(OLD_SPEC) == TaskSpec(fields=("text",), labels=("a", "b"))
    assert TaskSpec.model_validate_json(OLD_SPEC).abstain_below is None


def test_evaluation_of_an_older_release_reads_without_calibration() -> None:
    assert Evaluation.model_validate_json(OLD_EVALUATION).calibration is None


def test_evaluation_with_calibration_comes_back_the_same() -> None:
    known = Calibration(ece=0.1, ece_calibrated=0.05, accuracy=0.5, accuracy_calibrated=0.75)
    evaluation = Evaluation.model_validate_json(OLD_EVALUATION).model_copy(update={"calibration": known})
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_abstain_below_that_is_no_probability_is_refused(share: float) -> None:
    with pytest.raises(ValidationError):
        TaskSpec(fields=("text",), labels=("a", "b"), abstain_below=share)
