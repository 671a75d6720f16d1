"""A version's vectors over HTTP, in the words of the model that serves it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.asking import ask_in_parts
from app.api.auth.account import BYTES_OF_TOKEN, Account
from app.backbone import load_prompt
from app.engine import Answer
from app.errors import DeadlineExceeded
from app.training.data import Example
from app.training.examples import Encoder
from app.training.objective import answer_losses
from tests.architectures import build_backbone
from tests.live import HANG_S, serving, wait_until
from tests.prompts import TEXTS, WORDS
from tests.real_world import RealWorld, make_real_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> RealWorld:
    world = make_real_world(tmp_path_factory.mktemp("world"), redis_server_url, build_backbone("llama"))
    world.publish("mood", "<prompt:2>{text} so<prompt:1>", words=WORDS)
    world.publish("mood", "{text} so", words=WORDS)
    world.publish("mood", "{text} so<prompt:1>", words=WORDS, seed=1)
    world.publish("tale", "<prompt:2>{text}", metric="rouge_l")
    return world


@pytest.fixture(scope="module")
def client(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def test_vectors_of_a_version_come_with_slot_norm_and_nearest_words(client: httpx.Client) -> None:
    answer = client.get("/v1/tasks/mood/versions/1/vectors", params={"words": 3}).json()
    assert (answer["task"], answer["version"], answer["prefix"]) == ("mood", 1, [])
    assert [(one["slot"], one["index"]) for one in answer["vectors"]] == [(0, 0), (0, 1), (1, 2)]
    for one in answer["vectors"]:
        assert one["norm"] > 0
        cosines = [word["cosine"] for word in one["words"]]
        assert len(cosines) == 3
        assert cosines == sorted(cosines, reverse=True)


def test_vectors_of_a_hand_written_version_are_none(client: httpx.Client) -> None:
    assert client.get("/v1/tasks/mood/versions/2/vectors").json()["vectors"] == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("mood/versions/9/vectors", 404), ("nobody/versions/1/vectors", 404), ("mood/versions/1/vectors?words=0", 422)],
)
def test_vectors_that_cannot_be_shown_are_typed_errors(client: httpx.Client, path: str, status: int) -> None:
    answer = client.get(f"/v1/tasks/{path}")
    assert answer.status_code == status
    assert answer.json()["error"]["code"]


ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS * 3, list(WORDS) * 8, strict=False)]


def resident(client: httpx.Client) -> list[str]:
    """What `/metrics` says of prompts in the engine."""
    return [line for line in client.get("/metrics").text.splitlines() if line.startswith("chorus_prompts_resident")]


@pytest.mark.parametrize("number", [1, 3])
def test_version_is_scored_whole_and_without_each_vector(client: httpx.Client, world: RealWorld, number: int) -> None:
    path = f"/v1/tasks/mood/versions/{number}"
    found = client.post(f"{path}/leave-one-out", json={"data": {"inline": ROWS}}).json()
    answers = client.post(
        f"/v1/tasks/mood@{number}/generate", json={"inputs": [row["text"] for row in ROWS], "scores": True}
    ).json()["outputs"]
    right = [answer["label"] == row["label"] for answer, row in zip(answers, ROWS, strict=True)]
    loss = -sum(math.log(answer["scores"][row["label"]]) for answer, row in zip(answers, ROWS, strict=True)) / len(ROWS)
    assert (found["metric"], found["rows"]) == ("accuracy", len(ROWS))
    assert found["score"] == pytest.approx(sum(right) / len(right))
    assert found["loss"] == pytest.approx(loss, abs=1e-4)
    slots = {1: [(0, 0), (0, 1), (1, 2)], 3: [(0, 0)]}[number]
    assert [(one["slot"], one["index"], one["part"]) for one in found["vectors"]] == [(*of, "prompt") for of in slots]
    assert len({one["loss"] for one in found["vectors"]} | {found["loss"]}) == 1 + len(slots)


def test_score_without_a_vector_is_that_of_the_shorter_version(client: httpx.Client, world: RealWorld) -> None:
    """The shorter one published by hand answers the same."""
    found = client.post("/v1/tasks/mood/versions/1/leave-one-out", json={"data": {"inline": ROWS}}).json()
    version = world.store.get_version("mood", 1)
    shorter = version.meta.model_copy(update={"template": "<prompt:1>{text} so<prompt:1>", "num_virtual_tokens": 2})
    tensors = {"prompt": world.store.load(version)["prompt"][[0, 2]]}
    number = world.store.publish(
        task="mood", meta=shorter, tensors=tensors, publication="by-hand", alias="shorter"
    ).version.number
    wait_until(lambda: client.get(f"/v1/tasks/mood/versions/{number}").status_code == 200)
    whole = client.post(f"/v1/tasks/mood/versions/{number}/leave-one-out", json={"data": {"inline": ROWS}}).json()
    assert whole["loss"] == pytest.approx(found["vectors"][1]["loss"], abs=1e-4)
    assert whole["score"] == found["vectors"][1]["score"]


def test_free_text_is_written_and_its_loss_is_that_of_the_answers(client: httpx.Client, world: RealWorld) -> None:
    rows = [{"text": text, "output": text[::-1]} for text in TEXTS[:4]]
    found = client.post("/v1/tasks/tale/versions/1/leave-one-out", json={"data": {"inline": rows}}).json()
    assert (found["metric"], len(found["vectors"])) == ("rouge_l", 2)
    backbone = world.backbone
    version = world.store.get_version("tale", 1)
    loaded = load_prompt(version, world.store.load(version), backbone)
    encoder = Encoder(backbone.tokenizer, loaded.template, loaded.bos, None, 512)
    encoded = [encoder.encode(Example(1, {"text": row["text"]}, output=row["output"])) for row in rows]
    total, tokens = answer_losses(backbone, loaded.learned, encoded)
    assert found["loss"] == pytest.approx(total / tokens, abs=1e-4)


def test_uploaded_rows_are_sampled_and_nothing_stays_in_the_engine(client: httpx.Client, world: RealWorld) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    assert client.put("/v1/datasets/some", content=lines, headers={"content-type": "application/jsonl"}).is_success
    client.post("/v1/tasks/mood@1/generate", json={"input": TEXTS[0]})
    before = resident(client)
    body = {"data": {"dataset": "some"}, "sample": 6}
    found = client.post("/v1/tasks/mood/versions/1/leave-one-out", json=body).json()
    assert 4 <= found["rows"] <= 6  # of each label its share, rounded down
    wait_until(lambda: resident(client) == before)


def test_rows_answered_without_a_vector_count_among_the_callers_tokens(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[tuple[str, int]] = []
    monkeypatch.setattr("app.api.leave_one_out.count_answer", lambda *counted: spent.append(counted))
    client.post("/v1/tasks/mood/versions/3/leave-one-out", json={"data": {"inline": ROWS}})
    assert [version for version, _ in spent] == ["mood@3"] * 2
    assert spent[0][1] == spent[1][1] + len(ROWS)  # one virtual token less


def guess(row: dict[str, str], vectors: int) -> int:
    return len(row["text"].encode()) // BYTES_OF_TOKEN + 1 + vectors


def test_rows_without_a_vector_that_come_too_late_cost_a_guess_beside_those_answered(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(Account, "spend", lambda _, tokens: spent.append(tokens))
    path, body = "/v1/tasks/mood/versions/3/leave-one-out", {"data": {"inline": ROWS}}
    assert client.post(path, json=body).status_code == 200
    whole = spent[0]
    vectors = client.get("/v1/tasks/mood/versions/3").json()["num_virtual_tokens"]

    spent.clear()
    assert client.post(path, json={**body, "timeout_s": 1e-6}).status_code == 504
    assert sum(spent) == sum(guess(row, vectors) for row in ROWS)

    async def ask_all_but_one(*args: Any, **options: Any) -> list[Answer | Exception]:
        found = await ask_in_parts(*args, **options)
        late, found[0] = found[0], DeadlineExceeded("too late")
        assert isinstance(late, Answer)
        lost.append(late.usage.total_tokens - guess(dict(args[1][0].input), vectors))
        return found

    spent.clear()
    lost: list[int] = []
    monkeypatch.setattr("app.api.leave_one_out.ask_in_parts", ask_all_but_one)
    assert client.post(path, json=body).status_code == 504
    assert sum(spent) == whole - lost[0]


def test_rows_without_a_vector_that_are_left_cost_a_guess(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.sleep(HANG_S)

    spent: list[int] = []
    monkeypatch.setattr(Account, "spend", lambda _, tokens: spent.append(tokens))
    monkeypatch.setattr("app.api.leave_one_out.ask_in_parts", hang)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/tasks/mood/versions/3/leave-one-out", json={"data": {"inline": ROWS}}, timeout=0.3)
    wait_until(lambda: len(spent) == len(ROWS))


def test_leaving_out_of_a_hand_written_version_is_its_score_alone(client: httpx.Client) -> None:
    found = client.post("/v1/tasks/mood/versions/2/leave-one-out", json={"data": {"inline": ROWS}}).json()
    assert found["vectors"] == []
    assert 0 <= found["score"] <= 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("mood/versions/9", {"data": {"inline": ROWS}}, 404, "version_not_found"),
        ("mood/versions/1", {"data": {"dataset": "none"}}, 404, "dataset_not_found"),
        ("mood/versions/1", {"data": {"inline": ROWS[:2]}}, 422, "invalid_dataset"),
        ("mood/versions/1", {"data": {"inline": [row | {"label": "other"} for row in ROWS]}}, 422, "invalid_dataset"),
        ("mood/versions/1", {"data": {"inline": ROWS}, "timeout_s": 1e6}, 422, "invalid_request"),
        ("mood/versions/1", {"data": {"inline": ROWS}, "timeout_s": 1e-6}, 504, "deadline_exceeded"),
        ("mood/versions/1", {"data": {}}, 422, "invalid_request"),
        ("mood/versions/1", {}, 422, "invalid_request"),
    ],
)
def test_leaving_out_that_cannot_be_is_a_typed_error(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post(f"/v1/tasks/{path}/leave-one-out", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
