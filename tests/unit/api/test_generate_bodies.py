"""The bodies of the generate routes as the pages show them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.schemas.generate import GenerateBody, MixedBody

SHOWN = [(body, shown) for body in (GenerateBody, MixedBody) for shown in body.model_json_schema()["examples"]]


@pytest.mark.parametrize(("body", "shown"), SHOWN)
def test_body_shown_as_an_example_is_accepted_and_closed(body: type[BaseModel], shown: dict[str, Any]) -> None:
    body.model_validate(shown)
    with pytest.raises(ValidationError, match="extra_forbidden"):
        body.model_validate({**shown, "callibrate": True})


@pytest.mark.parametrize("body", [{"calibrate": 1}, {"members": "yes"}, {"calibrate": None}])
def test_switch_that_is_not_true_or_false_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerateBody.model_validate({"input": "x", **body})


def test_options_of_a_mixed_body_stand_beside_tasks_and_never_beside_requests() -> None:
    assert MixedBody.model_validate({"tasks": ["a"], "input": "x", "members": True}).members
    with pytest.raises(ValidationError):
        MixedBody.model_validate({"requests": [{"task": "a", "input": "x"}], "members": True})
