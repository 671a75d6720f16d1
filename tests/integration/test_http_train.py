"""Data sets and training jobs over HTTP, on a real Redis; no worker runs, so jobs stay queued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes import World, make_world
from tests.live import HANG_S, serving

ROWS = [{"text": f"{word} number {n}", "label": word} for n in range(10) for word in ("good", "bad")]
JSONL = "\n".join(json.dumps(row) for row in ROWS).encode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def upload(client: httpx.Client, name: str, data: bytes, kind: str = "application/jsonl") -> httpx.Response:
    return client.put(f"/v1/datasets/{name}", content=data, headers={"content-type": kind})


def train(client: httpx.Client, key: str | None = None, **changes: Any) -> httpx.Response:
    body = {"task": "trained", "training_data": {"inline": ROWS}, **changes}
    return client.post("/v1/train", json=body, headers={} if key is None else {"idempotency-key": key})


def test_dataset_is_described_by_digest_rows_and_labels(client: httpx.Client) -> None:
    put = upload(client, "words", JSONL).json()
    assert (put["rows"], put["labels"]) == (20, {"good": 10, "bad": 10})
    assert client.get("/v1/datasets/words").json() == put
    assert upload(client, "words-again", JSONL).json()["digest"] == put["digest"]


def test_csv_is_read_too(client: httpx.Client) -> None:
    data = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
    assert upload(client, "table", data.encode(), "text/csv").json()["rows"] == 20


def test_datasets_are_listed_in_pages(client: httpx.Client) -> None:
    for name in ("page-a", "page-b", "page-c"):
        upload(client, name, JSONL)
    first = client.get("/v1/datasets", params={"after": "page-", "limit": 2}).json()
    assert [one["name"] for one in first["data"]] == ["page-a", "page-b"]
    assert first["has_more"] is True


def test_broken_row_is_named(client: httpx.Client) -> None:
    refused = upload(client, "broken", JSONL + b'\n{"text": "x", "label": ')
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "invalid_dataset"
    assert "row 21" in refused.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", ""])
def test_dataset_of_another_content_type_is_415(client: httpx.Client, kind: str) -> None:
    assert upload(client, "other", JSONL, kind).status_code == 415


def test_unknown_dataset_is_404(client: httpx.Client) -> None:
    assert client.get("/v1/datasets/nothing").json()["error"]["code"] == "dataset_not_found"
    assert train(client, training_data={"dataset": "nothing"}).json()["error"]["code"] == "dataset_not_found"


def test_submitted_job_is_accepted_with_its_location(client: httpx.Client) -> None:
    accepted = train(client)
    job = accepted.json()
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/v1/train/{job['id']}"
    assert (job["status"], job["task"]) == ("queued", "trained")
    assert client.get(accepted.headers["location"]).json()["id"] == job["id"]
    assert job["id"] in [one["id"] for one in client.get("/v1/train").json()["data"]]


def test_same_idempotency_key_gives_the_same_job_and_another_body_409(client: httpx.Client) -> None:
    first, again = train(client, "key-1"), train(client, "key-1")
    other = train(client, "key-1", task="other")
    assert (first.json()["id"], again.status_code) == (again.json()["id"], 202)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_malformed_idempotency_key_is_422(client: httpx.Client, key: str) -> None:
    assert train(client, key).status_code == 422


@pytest.mark.parametrize(
    "changes",
    [
        {"training_data": {}},
        {"training_data": {"inline": []}},
        {"training_data": {"url": "http://169.254.169.254/"}},
        {"training_data": {"inline": ROWS, "dataset": "words"}},
        {"hyperparameters": {"learning_rate": "fast"}},
        {"hyperparameters": {"seed": True}},
        {"method": {"type": "my.module"}},
        {"publish": {"when": "sometimes"}},
        {"command": "rm"},
        {"task": "../x"},
    ],
)
def test_malformed_training_request_is_422(client: httpx.Client, changes: dict[str, Any]) -> None:
    assert train(client, **changes).status_code == 422


def test_cancelled_job_ends_and_is_cancelled_once(client: httpx.Client) -> None:
    url = train(client).headers["location"]
    first = client.post(f"{url}/cancel")
    assert first.json().get("status") == "cancelled", first.text
    again = client.post(f"{url}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job_ended")


@pytest.mark.parametrize("path", ["", "/events"])
def test_unknown_job_is_404_also_as_a_stream(client: httpx.Client, path: str) -> None:
    url = f"/v1/train/job-{'0' * 20}{path}"
    for accept in ("application/json", "text/event-stream"):
        answer = client.get(url, headers={"accept": accept})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


def test_events_come_in_pages(client: httpx.Client) -> None:
    url = train(client).headers["location"] + "/events"
    page = client.get(url).json()
    first = client.get(url, params={"limit": 1}).json()
    rest = client.get(url, params={"after": first["data"][0]["id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"] + rest["data"] == page["data"]
    assert "queued" in [event["message"] for event in page["data"]]


def test_events_stream_until_the_job_has_ended_and_go_on_from_the_last_id(client: httpx.Client) -> None:
    url = train(client).headers["location"]
    client.post(f"{url}/cancel")
    stream = client.get(f"{url}/events", headers={"accept": "text/event-stream"})
    *sent, done = [one for one in stream.text.split("\n\n") if one]
    ids = [one.split("\n")[0].removeprefix("id: ") for one in sent]
    assert done == "data: [DONE]"
    assert ids == [event["id"] for event in client.get(f"{url}/events").json()["data"]]
    resumed = client.get(f"{url}/events", headers={"accept": "text/event-stream", "last-event-id": ids[-2]})
    assert resumed.text.count("id: ") == 1
    assert ids[-1] in resumed.text


def test_events_stream_refuses_an_id_that_is_none(client: httpx.Client) -> None:
    url = train(client).headers["location"] + "/events"
    assert client.get(url, headers={"accept": "text/event-stream", "last-event-id": "x"}).status_code == 422


def test_trainers_on_this_machine_take_threads_from_serving(world: World, client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert world.engine.threads[0] == world.settings.cpu_threads
