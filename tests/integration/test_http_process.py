"""The whole service as a process of its own: bundled backbone, real engine, real store on a real Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import redis

from app.backbone import Backbone, BackboneConfig, compile_verbalizer, default_bos, load_backbone, parse_template
from prompt_store import Decoding, PromptMeta, PromptStore, TaskSpec
from tests.live import wait_until

START = "from app.main import serve; from app.settings import Settings; serve(Settings())"
HANG_S = 120.0
WORDS = {"negative": (" bad", " dull"), "positive": (" good", " a joy to watch")}


@dataclass
class Service:
    process: subprocess.Popen[str]
    url: str
    store: PromptStore
    log: list[str]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BackboneConfig())


def publish(store: PromptStore, backbone: Backbone, task: str, template: str, *, labels: bool, seed: int = 0) -> None:
    size = parse_template(template).num_virtual_tokens
    verbalizer = compile_verbalizer(backbone.tokenizer, WORDS) if labels else None
    meta = PromptMeta(
        task=task,
        template=template,
        verbalizer=WORDS if labels else None,
        verbalizer_ids=dict(zip(verbalizer.labels, verbalizer.ids, strict=True)) if verbalizer else None,
        terminated=verbalizer.terminated if verbalizer else False,
        bos=default_bos(backbone.tokenizer),
        method={"type": "prompt_tuning" if size else "hard"},
        backbone=backbone.ref,
        num_virtual_tokens=size,
        decoding=Decoding(max_tokens=12),
    )
    noise = np.random.default_rng(seed).normal(size=(size, backbone.hidden_size)).astype(np.float32)
    tensors = {"prompt": noise * np.float32(backbone.embedding_rms)} if size else {}
    spec = TaskSpec(fields=("text",), labels=tuple(WORDS) if labels else None)
    store.publish(task=task, meta=meta, tensors=tensors, publication=f"{task}-{seed}", spec=spec)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str, backbone: Backbone) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with redis.Redis.from_url(redis_server_url) as redis_client:
        redis_client.flushall()
    store = PromptStore.open(redis_server_url, folder / "blobs")
    publish(store, backbone, "mood", "<prompt:8>Review: {text}\nIt was", labels=True)
    publish(store, backbone, "story", "{text}", labels=False)
    environment = os.environ | {
        "CHORUS_REDIS_URL": redis_server_url,
        "CHORUS_DATA_DIR": str(folder),
        "CHORUS_PORT": "0",
        "CHORUS_THREADS": "1",
        "CHORUS_LOG_FORMAT": "json",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", START], env=environment, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
    reader.start()
    try:
        wait_until(lambda: listening(log) or process.poll() is not None, timeout_s=HANG_S)
        assert process.poll() is None, "".join(log)
        yield Service(process, listening(log), store, log)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def listening(log: list[str]) -> str:
    found = re.search(r'"url": "(http://[^"]+)"', "".join(log))
    return found[1] if found else ""


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=HANG_S) as client:
        yield client


def test_service_is_ready_and_says_what_runs(client: httpx.Client) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "degraded": False}
    assert client.get("/health").json()["backbone"]["runner"] == "packed"


def test_mixed_rows_answer_as_each_does_alone(client: httpx.Client) -> None:
    rows = [
        {"task": task, "input": text, "scores": True}
        for text in ("a fine film", "slow and far too long", "x")
        for task in ("mood", "story")
    ]
    together = client.post("/v1/generate", json={"requests": rows}).json()["outputs"]
    alone = [client.post("/v1/generate", json={"requests": [row]}).json()["outputs"][0] for row in rows]
    assert [(one["text"], one["error"]) for one in together] == [(one["text"], None) for one in alone]
    for one, other in zip(together, alone, strict=True):
        if one["scores"] is not None:
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
            assert sum(one["scores"].values()) == pytest.approx(1)
            assert one["usage"]["virtual_tokens"] == 8


def test_stream_gives_the_same_text(client: httpx.Client) -> None:
    body = {"input": "Once upon a time", "max_tokens": 20}
    whole = client.post("/v1/tasks/story/generate", json=body).json()["outputs"][0]
    stream = client.post("/v1/tasks/story/generate", json={**body, "stream": True}).text
    chunks = [json.loads(line.removeprefix("data: ")) for line in stream.split("\n\n")[:-2]]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_openai_client_gets_the_same_text(service: Service, client: httpx.Client) -> None:
    whole = client.post("/v1/tasks/story/generate", json={"input": "The film", "max_tokens": 9}).json()["outputs"][0]
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as sdk:
        text = sdk.completions.create(model="story", prompt="The film", max_tokens=9).choices[0].text
        pieces = sdk.completions.create(model="story", prompt="The film", max_tokens=9, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == text == whole["text"]


def test_text_that_looks_like_a_slot_is_text(client: httpx.Client) -> None:
    plain = client.post("/v1/tasks/mood/generate", json={"input": "<prompt:8>{text}"}).json()["outputs"][0]
    assert plain["usage"]["virtual_tokens"] == 8
    assert plain["error"] is None


def test_text_beyond_the_context_is_refused_with_all_three_numbers(client: httpx.Client) -> None:
    refused = client.post("/v1/tasks/mood/generate", json={"input": "word " * 5000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "context_too_long")
    assert "8 virtual tokens" in refused.json()["error"]["message"]


def test_deadline_ends_a_row(client: httpx.Client) -> None:
    answer = client.post("/v1/tasks/story/generate", json={"input": "Once", "max_tokens": 400, "timeout_s": 0.05})
    late = answer.json()
    assert answer.status_code == 504 or late["outputs"][0]["finish_reason"] == "timeout"


def test_version_published_elsewhere_answers_within_a_second_without_restart(
    service: Service, client: httpx.Client, backbone: Backbone
) -> None:
    def version() -> int:
        answer = client.post("/v1/tasks/mood/generate", json={"input": "x"})
        return int(answer.json()["outputs"][0]["version"])

    before = version()
    publish(service.store, backbone, "mood", "<prompt:8>Review: {text}\nIt was", labels=True, seed=1)
    wait_until(lambda: version() == before + 1, timeout_s=5)


def test_log_has_requests_with_ids_and_no_user_text(service: Service, client: httpx.Client) -> None:
    answer = client.post("/v1/tasks/story/generate", json={"input": "zebra crossing", "max_tokens": 1})
    wait_until(lambda: answer.headers["x-request-id"] in "".join(service.log))
    lines = [json.loads(line) for line in service.log if line.startswith("{")]
    requests = [line for line in lines if line["message"] == "request"]
    assert requests[-1]["route"] == "/v1/tasks/{ref}/generate"
    assert requests[-1]["status"] == 200
    assert "zebra" not in "".join(service.log)


def test_sigterm_finishes_the_stream_refuses_newcomers_and_ends_well(service: Service, client: httpx.Client) -> None:
    """Last: it ends the service."""
    body = {"input": "Once upon a time there was", "max_tokens": 500, "stream": True}
    with client.stream("POST", "/v1/tasks/story/generate", json=body) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{service.url}/readyz").status_code == 503)
        late = httpx.post(f"{service.url}/v1/tasks/story/generate", json={"input": "x"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["finish_reason"] in ("length", "stop")
    assert service.process.wait(HANG_S) == 0
