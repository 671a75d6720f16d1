"""The examples run as a reader runs them: train.py against a whole `chorus up`, infer.py against the API; and the data
set is what it says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.supervisor.banner import EXAMPLES as STARTER_INPUTS
from tests.fakes import FakeBackbone, World, make_world, publish
from tests.live import serving
from tests.whole import HANG_S, chorus_up, clean_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LABELS = {"billing", "technical", "account", "shipping", "feedback"}
KEY = "an-example-key-of-some-length"


def run_example(script: str, url: str, *options: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run a script; the key goes by the environment, as a careful reader's does."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), "--url", url, *options],
        env=clean_environment(CHORUS_API_KEY=key),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `chorus up` with a key."""
    with chorus_up(tmp_path_factory.mktemp("examples"), CHORUS_API_KEY=KEY) as url:
        yield url


def test_train_example_teaches_a_task_that_answers_at_once(service: str) -> None:
    run = run_example("train.py", service, "--epochs", "2")
    assert run.returncode == 0, run.stderr
    assert "status   succeeded" in run.stdout
    assert "Published tickets@1: accuracy" in run.stdout
    assert "answered right:" in run.stdout
    assert run.stdout.splitlines()[-1].strip(" ->").split(" (")[0] in LABELS


def test_train_example_with_a_wrong_key_says_what_the_service_says(service: str) -> None:
    run = run_example("train.py", service, key="a-key-that-nobody-gave-out")
    assert run.returncode == 1
    assert "401: send the key as `Authorization: Bearer <key>`" in run.stderr


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    """The API with a fake model and, beside the tasks it brings, those that the starters have and infer.py asks."""
    world = make_world(tmp_path, redis_url, api_key=KEY)
    for task in ("question-type", "topic", "subjectivity"):
        publish(world.store, FakeBackbone(), task, "{text}", labels=("one", "two"))
    return world


def test_infer_example_shows_all_five_ways_to_ask(world: World) -> None:
    with serving(world.app) as live:
        run = run_example("infer.py", live.url)
    assert run.returncode == 0, run.stderr
    for title in ("One text", "A batch", "Mixed tasks", "Fan-out", "Streaming"):
        assert f"\n{title}\n" in f"\n{run.stdout}"
    assert "sentiment@1: negative  negative 50%  positive 50%" in run.stdout
    assert run.stdout.count("question-type@1:") == 3
    assert "error: no task no-such-task" in run.stdout
    assert "label" in run.stdout.splitlines()[-1]
    asked = {prompt.partition("@")[0]: set(fields) for prompt, fields, *_ in world.engine.asked}
    assert len(asked) == 5
    assert asked == {task: set(STARTER_INPUTS[task]) for task in asked}, "the starters read other fields"


def test_examples_when_nobody_listens_say_how_to_start() -> None:
    for script in ("train.py", "infer.py"):
        run = run_example(script, "http://127.0.0.1:9")
        assert run.returncode == 1
        assert "make serve" in run.stderr
        assert "Traceback" not in run.stderr


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def test_tickets_are_balanced_over_the_labels() -> None:
    assert Counter(row["label"] for row in rows("tickets.jsonl")) == dict.fromkeys(LABELS, 30)
    assert Counter(row["label"] for row in rows("tickets-test.jsonl")) == dict.fromkeys(LABELS, 10)


def test_no_ticket_stands_twice_or_in_both_files() -> None:
    texts = [row["text"].casefold() for name in ("tickets.jsonl", "tickets-test.jsonl") for row in rows(name)]
    assert len(set(texts)) == len(texts) == 200


def test_tickets_vary_in_length_and_have_two_fields() -> None:
    for name in ("tickets.jsonl", "tickets-test.jsonl"):
        lengths = [len(row["text"].split()) for row in rows(name)]
        assert min(lengths) >= 5
        assert max(lengths) >= 2 * min(lengths)
        assert all(set(row) == {"text", "label"} for row in rows(name))
