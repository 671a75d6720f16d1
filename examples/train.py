"""Teach a running Chorus a new task from a file of examples, watch it learn, and ask it.

    make serve                                   # in one terminal
    .venv/bin/python examples/train.py           # in another: support tickets, about a minute on two cores

Needs only httpx. The rows are JSON lines with a `text` and a `label`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent

# Both may be left out: then the fields make the template, and each label is its own word. A small model learns sooner
# when the question is worded as its training text was, and when the words that stand for a label mean it.
TEMPLATE = "<prompt:20>{text}\nTopic:"
WORDS = {
    "billing": [" payment"],
    "technical": [" computer"],
    "account": [" password"],
    "shipping": [" mail"],
    "feedback": [" good"],
}
QUESTION = "Two of the three lamps came, where is the last one?"


def main() -> int:
    options = parse_arguments()
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    with httpx.Client(base_url=options.url, headers=headers, timeout=60) as chorus:
        upload(chorus, options.task, options.data)
        job = submit(chorus, options.task, options.epochs)
        for event in follow(chorus, job["id"]):
            if event["type"] != "progress":  # one of these every second, for progress bars
                print(f"{event['type']:8} {event['message']}", flush=True)
        job = checked(chorus.get(f"/v1/train/{job['id']}"))
        if job["status"] != "succeeded":
            sys.exit(f"{job['status']}: {job['error']}")
        report(options.task, job)
        right, total = score(chorus, options.task, options.test)
        print(f"Rows it has never seen, answered right: {right} of {total}")
        print(f"{QUESTION}\n  -> {ask(chorus, options.task, QUESTION)}")
    return 0


def upload(chorus: httpx.Client, name: str, path: Path) -> None:
    """Data sets are content-addressed: the same file again is no new upload."""
    kind = {"Content-Type": "application/jsonl"}
    checked(chorus.put(f"/v1/datasets/{name}", content=path.read_bytes(), headers=kind))


def submit(chorus: httpx.Client, task: str, epochs: int) -> dict[str, Any]:
    """A task that does not exist is made from its rows."""
    body = {
        "task": task,
        "training_data": {"dataset": task},
        "template": TEMPLATE,
        "verbalizer": WORDS,
        "hyperparameters": {"n_epochs": epochs},
    }
    return checked(chorus.post("/v1/train", json=body))


def follow(chorus: httpx.Client, job: str) -> Iterator[dict[str, Any]]:
    """The job's events as they happen, until it has ended."""
    with chorus.stream("GET", f"/v1/train/{job}/events", headers={"Accept": "text/event-stream"}) as stream:
        stream.raise_for_status()
        for line in stream.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    sys.exit(event["error"]["message"])
                yield event


def score(chorus: httpx.Client, task: str, path: Path) -> tuple[int, int]:
    """How many rows of a file the task labels right; all of them go in one request."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answer = checked(chorus.post(f"/v1/tasks/{task}/generate", json={"inputs": [row["text"] for row in rows]}))
    right = sum(output["label"] == row["label"] for output, row in zip(answer["outputs"], rows, strict=True))
    return right, len(rows)


def ask(chorus: httpx.Client, task: str, text: str) -> str:
    answer = checked(chorus.post(f"/v1/tasks/{task}/generate", json={"input": text, "scores": True}))
    label = answer["outputs"][0]["label"]
    return f"{label} ({answer['outputs'][0]['scores'][label]:.0%})"


def report(task: str, job: dict[str, Any]) -> None:
    """What was published, with its score on the rows the trainer held back and those it has to beat."""
    metrics = job["metrics"]
    baselines = ", ".join(f"{name} {value:.2f}" for name, value in metrics["baselines"].items())
    version = f"{task}@{job['result']['version']}"
    print(f"\nPublished {version}: accuracy {metrics['accuracy']:.2f} on {metrics['n']} rows ({baselines})")


def checked(response: httpx.Response) -> dict[str, Any]:
    """The body of an answer; the service's own words when it refuses."""
    if response.is_error:
        sys.exit(f"{response.status_code}: {response.json()['error']['message']}")
    body: dict[str, Any] = response.json()
    return body


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("CHORUS_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--key", default=os.environ.get("CHORUS_API_KEY"))
    parser.add_argument("--task", default="tickets")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--data", type=Path, default=HERE / "tickets.jsonl")
    parser.add_argument("--test", type=Path, default=HERE / "tickets-test.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except httpx.ConnectError as error:
        sys.exit(f"No Chorus answers at {error.request.url}. Start one with: make serve")
