"""Bodies made from the contract's own field names and arbitrary values: always an answer, never a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.schemas.aliases import AliasBody, EnsembleBody, ShareBody
from app.api.schemas.completions import CompletionBody
from app.api.schemas.generate import GenerateBody, MixedBody, Request
from app.api.schemas.tasks import DecodingBody, TaskBody
from app.training.methods import METHODS
from app.training.requests import Hyperparameters, Publish, TrainingData, TrainRequest, ValidationData
from tests.fakes import make_world
from tests.live import HANG_S, serving

BODIES = (
    GenerateBody,
    MixedBody,
    Request,
    CompletionBody,
    TaskBody,
    DecodingBody,
    AliasBody,
    ShareBody,
    EnsembleBody,
)
TRAINING = (TrainRequest, TrainingData, ValidationData, Hyperparameters, Publish)
TRAINING += tuple(method.config for method in METHODS.values())
NAMES = sorted({name for model in BODIES + TRAINING for name in model.model_fields} | {"text", "label", "type"})
TEXT = st.sampled_from(["", "x", "echo", "sentiment@1", "echo:prod", "auto", *METHODS, "<prompt:3>", "{", "\x00"])
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
TREE = st.recursive(
    LEAF,
    lambda tree: st.lists(tree, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | TEXT, tree, max_size=5),
    max_leaves=12,
)
ROUTES = [
    ("POST", "/v1/tasks/echo/generate"),
    ("POST", "/v1/generate"),
    ("POST", "/v1/completions"),
    ("PUT", "/v1/tasks/fuzzed"),
    ("PUT", "/v1/tasks/echo/aliases/fuzzed"),
    ("POST", "/v1/train"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[httpx.Client]:
    world = make_world(tmp_path_factory.mktemp("world"), redis_server_url)
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def check_answer(answer: httpx.Response, sent: Any) -> None:
    assert answer.status_code < 500, (answer.text, sent)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"code", "message", "param", "type", "request_id"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_any_json_is_answered(client: httpx.Client, method: str, path: str) -> None:
    @given(st.dictionaries(st.sampled_from(NAMES), TREE, max_size=6) | TREE)
    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def send(body: Any) -> None:
        check_answer(client.request(method, path, json=body), body)

    send()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_one_wrong_value_in_an_honest_body_is_answered(client: httpx.Client, method: str, path: str) -> None:
    honest: dict[str, dict[str, Any]] = {
        "/v1/tasks/echo/generate": {"input": "x", "max_tokens": 3, "stop": ["a"], "seed": 1, "timeout_s": 1.0},
        "/v1/generate": {"tasks": ["echo"], "input": "x", "temperature": 0.5},
        "/v1/completions": {"model": "echo", "prompt": "x", "max_tokens": 3, "stop": "a", "logit_bias": None},
        "/v1/tasks/fuzzed": {"fields": ["text"], "labels": ["a", "b"], "decoding": {"max_tokens": 3}},
        "/v1/tasks/echo/aliases/fuzzed": {"version": 1, "split": None, "ensemble": None},
        "/v1/train": {
            "task": "fuzzed-too",
            "training_data": {"inline": [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]},
            "template": "<prompt:4>{text} is",
            "hyperparameters": {"seed": 1, "n_epochs": 1},
            "method": {"type": "residual"},
            "verbalizer": {"a": [" a"], "b": [" b"]},
        },
    }

    @given(st.sampled_from(sorted(honest[path])), TREE)
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def send(name: str, value: Any) -> None:
        body = {**honest[path], name: value}
        check_answer(client.request(method, path, json=body), body)

    send()


@given(st.binary(max_size=400))
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_as_a_data_set_are_answered(client: httpx.Client, data: bytes) -> None:
    for kind in ("application/jsonl", "text/csv"):
        check_answer(client.put("/v1/datasets/fuzzed", content=data, headers={"content-type": kind}), data)


@given(st.sampled_from(["GET", "DELETE", "POST"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_name_is_answered(client: httpx.Client, method: str, name: str) -> None:
    for path in ("/v1/tasks/{}", "/v1/tasks/echo/versions/{}", "/v1/tasks/echo/aliases/{}", "/v1/train/{}"):
        url = httpx.URL(client.base_url, raw_path=path.format(quoted(name)).encode())
        check_answer(client.request(method, url), name)


def quoted(name: str) -> str:
    return "".join(f"%{byte:02x}" for byte in name.encode())
