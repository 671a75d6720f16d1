"""Two replicas with a real engine: what is published through the HTTP API of one answers on both.

The short form has a tiny model and both servers in this process; the long one has processes that run the bundled model.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from safetensors.torch import load, save

from app.main import create_app
from app.settings import Settings
from app.training import JobStore
from prompt_store import PromptStore
from tests.adapters import peft_model, serving_llama
from tests.adapters import save as save_adapter
from tests.architectures import build_backbone
from tests.live import HANG_S, serving, wait_until
from tests.replica import replicas

# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TASK = "sentiment"
PUBLICATIONS = 30
PROMISED_S = 1.0


@dataclass
class Replicas:
    """`adapter` is a prompt as `POST …/versions` takes it: a version, once its vectors are others."""

    clients: list[httpx.Client]
    adapter: dict[str, Any]

    def publish(self, through: int, seed: int) -> int:
        """A version with vectors of its own, published by one replica; its number. It becomes `prod`."""
        tensors = load(base64.b64decode(self.adapter["adapter_model"]))
        changed = save({name: tensor * (1 + 0.001 * (seed + 1)) for name, tensor in tensors.items()})
        body = {**self.adapter, "adapter_model": base64.b64encode(changed).decode(), "create_task": True}
        answer = self.clients[through].post(f"/v1/tasks/{TASK}/versions", json=body)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["version"])


@pytest.fixture
def near(redis_url: str, tmp_path: Path) -> Iterator[Replicas]:
    """In threads, each with an engine, a registry and a follower of its own."""
    files = save_adapter(peft_model(build_backbone("llama"), "PROMPT_TUNING"), tmp_path / "adapter")
    with ExitStack() as stack:
        clients = []
        for name in ("one", "other"):
            store = stack.enter_context(PromptStore.open(redis_url, tmp_path / "blobs"))
            settings = Settings(data_dir=tmp_path / name, redis_url=redis_url, threads=1)
            jobs = JobStore.open(redis_url, tmp_path, store, lease_s=15)
            live = stack.enter_context(serving(create_app(settings, store=store, backbone=serving_llama(), jobs=jobs)))
            clients.append(stack.enter_context(httpx.Client(base_url=live.url, timeout=HANG_S)))
        model = base64.b64encode(files.model).decode()
        words = {"good": [" good", " great"], "bad": [" bad"]}
        wording = {"template": "{text}\nIt was", "verbalizer": words}
        yield Replicas(clients, {"adapter_config": dict(files.config), "adapter_model": model, **wording})


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[Replicas]:
    """Processes; the adapter is the bundled prompt."""
    folder = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "CHORUS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        server = stack.enter_context(redis.Redis.from_url(redis_server_url))
        server.flushall()
        own = [folder / "one", folder / "other"]
        urls = stack.enter_context(replicas(redis_server_url, folder / "shared", own, environment, model=True))
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=HANG_S)) for url in urls]
        for client in clients:
            tasks = len(client.get("/v1/tasks").json()["data"])
            wait_until(lambda client=client, tasks=tasks: loaded(client) >= tasks)  # a fresh start is behind them
        answer = clients[0].get(f"/v1/tasks/{TASK}/versions/1/adapter")
        assert answer.status_code == 200, answer.text
        yield Replicas(clients, answer.json())


def loaded(client: httpx.Client) -> float:
    """Prompts that the replica holds ready."""
    found = re.search(r"^chorus_prompts_loaded (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def answered(client: httpx.Client) -> int:
    answer = client.post(f"/v1/tasks/{TASK}/generate", json={"input": "a fine film"})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["outputs"][0]["version"])


def seconds_until_all_answer(clients: list[httpx.Client], number: int) -> float:
    """From now to the first answer of the version by the replica that is last; who went over never goes back."""
    began, together = time.monotonic(), threading.Barrier(len(clients))

    def ask(client: httpx.Client) -> float:
        together.wait(HANG_S)
        while answered(client) != number:
            assert time.monotonic() - began < HANG_S, "the version is not answered with"
            time.sleep(0.02)
        return time.monotonic() - began

    with ThreadPoolExecutor(len(clients)) as threads:
        took = max(threads.map(ask, clients))
    assert [answered(client) for client in clients] == [number] * len(clients)
    return took


def test_version_published_through_one_replica_answers_on_all(near: Replicas) -> None:
    for turn in range(4):
        seconds_until_all_answer(near.clients, near.publish(turn % 2, turn))


def test_alias_moved_through_one_replica_is_moved_on_all(near: Replicas) -> None:
    near.publish(0, 0)
    seconds_until_all_answer(near.clients, near.publish(1, 1))
    for turn, number in enumerate((1, 2, 1)):
        moved = near.clients[turn % 2].put(f"/v1/tasks/{TASK}/aliases/prod", json={"version": number})
        assert moved.status_code == 200, moved.text
        seconds_until_all_answer(near.clients, number)


@pytest.mark.chaos
@pytest.mark.slow
def test_version_published_through_one_process_answers_on_all_within_a_second(
    far: Replicas, record_property: Callable[[str, object], None]
) -> None:
    took = [seconds_until_all_answer(far.clients, far.publish(turn % 2, turn)) for turn in range(PUBLICATIONS)]
    record_property("tries", len(took))
    record_property("told", f"at most {max(took):.2f} s until all answered")
    assert max(took) < PROMISED_S, sorted(took)
