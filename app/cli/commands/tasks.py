"""`chorus tasks`, `versions`: what is registered in a running service."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output
from app.cli.targets import in_words

PROD = "prod"
SHOWN_LABELS = 6


def tasks(url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False, debug: Debug = False) -> None:
    """List the tasks: what they read, what they answer, how well."""
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        found = client.tasks()
        if as_json:
            out.data(found)
            return
        rows = [[*_task_cells(task), _prod_score(client, task)] for task in found]
    if not rows:
        out.say("No task is registered. Train one: chorus train FILE.jsonl --task NAME --watch")
        return
    out.table(["TASK", "READS", "ANSWERS", "PROD", "SCORE"], rows, right=["PROD"])


def versions(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the versions of a task with their cards, newest first."""
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        found = client.versions(task)
    if as_json:
        out.data(found)
        return
    if not found:
        out.say(f"{task} has no version yet. Train one: chorus train FILE.jsonl --task {task} --watch")
        return
    columns = ["VERSION", "ALIASES", "STATE", "METHOD", "VECTORS", "SCORE", "BASELINES", "CREATED", "DIGEST"]
    rows = [_version_cells(version) for version in sorted(found, key=lambda one: -int(one["version"]))]
    out.table(columns, rows, right=["VERSION", "VECTORS"])


def _task_cells(task: dict[str, Any]) -> list[Any]:
    labels, prod = task.get("labels") or [], task["aliases"].get(PROD)
    answers = ", ".join(labels[:SHOWN_LABELS]) + (f" … ({len(labels)})" if len(labels) > SHOWN_LABELS else "")
    if task.get("abstain_below") is not None:
        answers += f"; none under {task['abstain_below']:g}"
    return [task["name"], ", ".join(task["fields"]), answers or "free text", in_words(prod) if prod else None]


def _prod_score(client: Any, task: dict[str, Any]) -> str:
    """The score of the one version that answers; versions that share the work have none in common."""
    prod = task["aliases"].get(PROD)
    return score(client.version(task["name"], prod).get("card")) if isinstance(prod, int) else ""


def _version_cells(version: dict[str, Any]) -> list[Any]:
    card = version.get("card") or []
    return [
        version["version"],
        ", ".join(version.get("aliases") or []),
        version["state"],
        (version.get("method") or {}).get("type"),
        version.get("num_virtual_tokens"),
        score(card),
        baselines(card),
        when(version["created_at"]),
        version["digest"][:12],
    ]


def score(card: list[dict[str, Any]] | None) -> str:
    """The newest evaluation in words: `accuracy 0.874 ±0.021 (n 872)`."""
    if not card:
        return ""
    last = card[-1]
    low, high = last["interval"]
    return f"{last['metric']} {last['score']:.3f} ±{(high - low) / 2:.3f} (n {last['n']})"


def baselines(card: list[dict[str, Any]] | None) -> str:
    """What the newest evaluation is measured against: `majority 0.509, zero_shot 0.612`."""
    found = (card[-1].get("baselines") or {}) if card else {}
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(found.items()))


def when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
