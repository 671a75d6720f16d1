"""A sweep over HTTP, against a whole service: submitted, followed, published at once, and answering as an ensemble."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx

from tests.training_data import mood_rows
from tests.whole import HANG_S, chorus_up


def wait(client: httpx.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/v1/train/{job_id}").json()
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise AssertionError(job)


def test_sweep_over_http_ends_as_an_ensemble_that_answers(tmp_path: Path) -> None:
    with chorus_up(tmp_path) as url, httpx.Client(base_url=url, timeout=HANG_S) as client:
        body = {
            "task": "mood",
            "training_data": {"inline": mood_rows(16)},
            "hyperparameters": {"batch_size": 4, "n_epochs": 4},
            "sweep": {"num_virtual_tokens": [3, 5], "seed": [1, 2]},
            "publish": {"top_k": 2},
        }
        wrong = client.post("/v1/train", json=body | {"sweep": {"num_virtual_tokens": [3, 0]}})
        assert wrong.status_code == 422
        assert wrong.json()["error"]["param"] == "sweep.num_virtual_tokens.1"
        many = client.post("/v1/train", json=body | {"sweep": {"seed": list(range(65))}})
        assert (many.status_code, many.json()["error"]["code"]) == (422, "sweep_too_large")
        accepted = client.post("/v1/train", json=body)
        assert accepted.status_code == 202, accepted.text
        assert len(accepted.json()["members"]) == 4
        job = wait(client, accepted.json()["id"])
        assert job["status"] == "succeeded", job
        assert [one["version"] for one in job["result"]["ensemble"]] == [1, 2]
        assert sorted(row["state"] for row in job["result"]["sweep"]) == ["chosen", "stopped", "stopped", "won"]
        alias = client.get("/v1/tasks/mood/aliases/prod").json()
        assert alias["ensemble"] == {"members": [1, 2], "mode": "vote"}
        answer = client.post("/v1/tasks/mood/generate", json={"input": "It is wonderful.", "members": True})
        (output,) = answer.json()["outputs"]
        assert output["label"] in ("good", "bad")
        assert [member["version"] for member in output["members"]] == [1, 2]
        events = client.get(f"/v1/train/{job['id']}/events", headers={"accept": "text/event-stream"}).text
        told = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
        assert {one["data"]["member"] for one in told if "member" in one["data"]} == {1, 2, 3, 4}
