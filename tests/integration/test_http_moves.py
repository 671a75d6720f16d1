"""A task is moved, rolled back, retired or deleted while a stream of it pauses between two tokens: it ends as it began.

A real engine, held before one of its steps. Its prompts have other vectors in each version, so that their texts differ.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engine.engine import Engine
from tests.architectures import build_backbone
from tests.live import HANG_S, serving, wait_until
from tests.real_world import RealWorld, make_real_world

TOKENS = 24
TEMPLATE = "<prompt:5>{text}"
BODY = {"input": "once upon", "max_tokens": TOKENS}


@dataclass
class Hold:
    """Lets the engine make some steps, then holds it until it may go on."""

    left: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)

    def before_step(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            self.held.set()
            assert self.go_on.wait(HANG_S)
            self.left = None
            return
        self.left -= 1


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    hold, step = Hold(), Engine.step

    def held(engine: Engine) -> list[Any]:
        hold.before_step()
        return step(engine)

    monkeypatch.setattr(Engine, "step", held)
    return hold


@pytest.fixture
def world(tmp_path: Path, redis_url: str, hold: Hold) -> RealWorld:
    """`tale` has two versions; `prod` points to the first."""
    world = make_real_world(tmp_path, redis_url, build_backbone("llama"), reconcile_s=0.2)
    for seed in (1, 2):
        world.publish("tale", TEMPLATE, seed=seed)
    world.store.move_alias("tale", "prod", 1, expected=None)
    return world


@pytest.fixture
def client(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def ask(client: httpx.Client, ref: str = "tale") -> tuple[int, int | None, str | None]:
    """Status, version and text."""
    answer = client.post(f"/v1/tasks/{ref}/generate", json=BODY)
    output = answer.json()["outputs"][0] if answer.status_code == 200 else {}
    return answer.status_code, output.get("version"), output.get("text")


def move(client: httpx.Client, version: int) -> None:
    assert client.put("/v1/tasks/tale/aliases/prod", json={"version": version}).status_code == 200


def move_and_retire(client: httpx.Client) -> None:
    move(client, 2)
    assert client.delete("/v1/tasks/tale/versions/1").status_code == 200


def delete(client: httpx.Client) -> None:
    assert client.delete("/v1/tasks/tale").status_code == 204


def read(line: str) -> Any:
    return json.loads(line.removeprefix("data: "))


def streamed(client: httpx.Client, hold: Hold, change: Callable[[], None]) -> tuple[int, str]:
    """Version and text of a stream in whose midst `change` happened."""
    hold.left = 3
    with client.stream("POST", "/v1/tasks/tale/generate", json={**BODY, "stream": True}) as stream:
        lines = (line for line in stream.iter_lines() if line)
        first = read(next(lines))
        assert hold.held.wait(HANG_S)
        change()
        hold.go_on.set()
        events = [first, *(read(line) for line in lines if line != "data: [DONE]")]
    assert events[-1]["usage"]["completion_tokens"] == TOKENS
    return events[-1]["version"], "".join(event["text"] for event in events)


@pytest.mark.parametrize(
    ("change", "next_version"),
    [
        pytest.param(lambda client: move(client, 2), 2, id="moved"),
        pytest.param(move_and_retire, 2, id="moved and retired"),
        pytest.param(delete, None, id="deleted"),
    ],
)
def test_stream_ends_with_the_version_it_began_with_and_the_next_request_sees_the_new_state(
    client: httpx.Client, hold: Hold, change: Callable[[httpx.Client], None], next_version: int | None
) -> None:
    texts = {number: ask(client, f"tale@{number}")[2] for number in (1, 2)}
    assert texts[1] != texts[2]
    assert streamed(client, hold, lambda: change(client)) == (1, texts[1])
    if next_version is None:
        assert ask(client)[0] == ask(client, "tale@1")[0] == 404
    else:
        assert ask(client) == (200, next_version, texts[next_version])


def test_stream_of_a_deleted_task_does_not_end_as_the_new_one_of_its_name(
    client: httpx.Client, world: RealWorld, hold: Hold
) -> None:
    old = ask(client)[2]

    def make_anew() -> None:
        delete(client)
        world.publish("tale", TEMPLATE, seed=3)

    assert streamed(client, hold, make_anew) == (1, old)
    wait_until(lambda: ask(client)[0] == 200)
    assert ask(client)[2] != old
