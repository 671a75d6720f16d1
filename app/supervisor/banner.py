"""What `chorus up` shows when it is ready: where it is, one call for each task, how to stop. Only text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CALLS = 8

# One example for each starter task, by its fields. Ours, from no data set.
EXAMPLES: dict[str, dict[str, str]] = {
    "sentiment": {"text": "A warm and funny film with a wonderful cast."},
    "nli": {
        "premise": "Two girls carry a kayak down to the lake.",
        "hypothesis": "Somebody is outdoors.",
    },
    "topic": {"text": "The ferry company ordered three electric ships after fuel prices rose again."},
    "question-type": {"text": "Who painted the ceiling of the station in Porto?"},
    "duplicate": {
        "question1": "How can I learn to play the guitar?",
        "question2": "What is the best way to learn the guitar?",
    },
    "subjectivity": {"text": "A tired and noisy comedy that never finds a reason to exist."},
    "kind": {"text": "It rises near an old mill, is 61 kilometres long and freezes over in most winters."},
    "describe": {"input": "name[The Tin Whistle], eatType[pub], food[Greek], priceRange[cheap], area[riverside]"},
}


@dataclass(frozen=True)
class Facts:
    """What the banner tells. `tasks` are the API's own records; `model` is a sentence about model and device."""

    url: str
    model: str
    data_dir: Path
    log_dir: Path
    tasks: Sequence[Mapping[str, Any]]
    seconds: float
    needs_key: bool
    command: str
    path_hint: str | None


def render(facts: Facts) -> Iterator[str]:
    """The banner, line by line, with rich markup in headings only."""
    yield f"[bold green]Chorus is ready[/] after {facts.seconds:.1f} s."
    yield ""
    yield f"  API    {facts.url}"
    yield f"  Docs   {facts.url}/docs"
    yield f"  Model  {facts.model}"
    yield f"  Data   {facts.data_dir}"
    yield f"  Logs   {facts.log_dir}"
    if facts.needs_key:
        yield f"  Keys   every call carries one: {facts.command} keys create --scope generate"
    else:
        yield f"  Keys   none asked for: only this machine gets here ({facts.command} keys create changes that)"
    yield ""
    yield from _calls(facts)
    yield f"[bold]Train your own[/]  {facts.command} train FILE.jsonl --task NAME --watch"
    yield "[bold]Stop[/]            Ctrl-C finishes what runs and stops all; a second Ctrl-C ends it at once"
    if facts.path_hint:
        yield f"[bold]PATH[/]            {facts.path_hint}"


def _calls(facts: Facts) -> Iterator[str]:
    if not facts.tasks:
        yield "No task is registered yet. Train one, and it answers here without a restart."
        yield ""
        return
    count = len(facts.tasks)
    yield f"[bold]Ask {'its task' if count == 1 else f'one of its {count} tasks'}[/]"
    yield ""
    for task in in_order(facts.tasks)[:MAX_CALLS]:
        yield f"  # {describe(task)}"
        yield from (f"  {line}" for line in curl(facts.url, task, needs_key=facts.needs_key))
        yield ""
    if count > MAX_CALLS:
        yield f"  … and {count - MAX_CALLS} more: {facts.command} tasks"
        yield ""


def in_order(tasks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The user's own tasks first, then the starters from what everybody knows to what wants a word of explanation."""
    order = list(EXAMPLES)
    return sorted(tasks, key=lambda task: order.index(task["name"]) + 1 if task["name"] in EXAMPLES else 0)


def describe(task: Mapping[str, Any]) -> str:
    """A task in one line: its name, and what it answers."""
    labels = task.get("labels") or []
    answers = ", ".join(str(label) for label in labels[:8]) + (" …" if len(labels) > 8 else "")
    return f"{task['name']}: {answers or task.get('description') or 'free text'}"


def curl(url: str, task: Mapping[str, Any], *, needs_key: bool) -> list[str]:
    """A `curl` call for `task`, ready to paste into a shell."""
    body = json.dumps({"input": example_input(task)}, ensure_ascii=False)
    key = ' -H "authorization: Bearer $CHORUS_API_KEY"' if needs_key else ""
    return [
        f"curl -s {url}/v1/tasks/{task['name']}/generate{key} -H 'content-type: application/json' \\",
        f"  -d {shlex.quote(body)}",
    ]


def example_input(task: Mapping[str, Any]) -> str | dict[str, str]:
    """Example text for a task's fields: our own for a starter task, else the fields' names."""
    fields = list(task.get("fields") or ["text"])
    known = EXAMPLES.get(str(task["name"]), {})
    values = [known[name] for name in fields] if set(known) == set(fields) else [f"Some {name}." for name in fields]
    return values[0] if len(fields) == 1 else dict(zip(fields, values, strict=True))
