"""Promises of the banner."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from app.supervisor.banner import EXAMPLES, MAX_CALLS, Facts, curl, example_input, render

TASK = {"name": "sentiment", "fields": ["text"], "labels": ["negative", "positive"], "description": ""}
PAIR = {"name": "nli", "fields": ["premise", "hypothesis"], "labels": ["yes", "no"], "description": ""}
FACTS = Facts(
    url="http://127.0.0.1:8000",
    model="tiny on the CPU",
    data_dir=Path("/data"),
    log_dir=Path("/data/logs"),
    tasks=[TASK, PAIR],
    seconds=1.5,
    needs_key=False,
    command="chorus",
    path_hint=None,
)


def parse(lines: list[str]) -> list[str]:
    return shlex.split("\n".join(lines).replace("\\\n", " "))


def test_render_says_where_how_to_ask_and_how_to_stop() -> None:
    text = "\n".join(render(FACTS))
    for part in ("http://127.0.0.1:8000/docs", "sentiment: negative, positive", "/v1/tasks/nli/generate", "Ctrl-C"):
        assert part in text


@pytest.mark.parametrize("task", [TASK, PAIR, {"name": "own", "fields": ["it's"], "labels": None}])
def test_curl_for_a_task_is_a_shell_command_with_valid_json(task: dict[str, object]) -> None:
    words = parse(curl("http://h:1", task, needs_key=False))
    assert words[:3] == ["curl", "-s", f"http://h:1/v1/tasks/{task['name']}/generate"]
    assert json.loads(words[-1]) == {"input": example_input(task)}


def test_curl_when_a_key_is_needed_takes_it_from_the_environment() -> None:
    assert 'Bearer $CHORUS_API_KEY"' in "".join(curl("http://h:1", TASK, needs_key=True))


def test_example_input_when_the_fields_differ_from_the_starters_uses_the_names() -> None:
    assert example_input({"name": "sentiment", "fields": ["body"]}) == "Some body."
    assert example_input(PAIR) == EXAMPLES["nli"]


def test_render_when_there_are_many_tasks_shows_some_and_counts_the_rest() -> None:
    many = replace(FACTS, tasks=[{**TASK, "name": f"task-{n}"} for n in range(MAX_CALLS + 3)])
    text = "\n".join(render(many))
    assert text.count("curl") == MAX_CALLS
    assert "and 3 more" in text


def test_render_shows_own_tasks_first_and_then_the_starters_from_the_plainest() -> None:
    names = ["describe", "kind", "own", "sentiment", "topic"]
    tasks = [{**TASK, "name": name} for name in names]
    text = "\n".join(render(replace(FACTS, tasks=tasks)))
    assert sorted(names, key=lambda name: text.index(f"# {name}:")) == ["own", "sentiment", "topic", "kind", "describe"]


def test_render_when_there_is_no_task_says_how_to_make_one() -> None:
    assert "No task is registered yet" in "\n".join(render(replace(FACTS, tasks=[])))
