"""Five ways to ask a running Chorus, with the tasks it starts with: one text, many, mixed tasks, fan-out, streaming.

    make serve                                   # in one terminal
    .venv/bin/python examples/infer.py           # in another

Needs only httpx.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx


def main() -> int:
    options = parse_arguments()
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    with httpx.Client(base_url=options.url, headers=headers, timeout=60) as chorus:
        single(chorus)
        batch(chorus)
        mixed(chorus)
        fan_out(chorus)
        stream(chorus)
    return 0


def single(chorus: httpx.Client) -> None:
    """One text for one task, with the probability of each label."""
    text = "The soup was cold and nobody said sorry."
    show("One text", [text], post(chorus, "/v1/tasks/sentiment/generate", {"input": text, "scores": True}))


def batch(chorus: httpx.Client) -> None:
    """Many texts for one task in one request; they are answered together."""
    texts = ["Who built the harbour wall?", "How many legs has a lobster?", "Where does the river end?"]
    show("A batch", texts, post(chorus, "/v1/tasks/question-type/generate", {"inputs": texts}))


def mixed(chorus: httpx.Client) -> None:
    """Rows of different tasks in one request. A row that fails carries its own `error`; its neighbours are answered."""
    requests: list[dict[str, Any]] = [
        {"task": "sentiment", "input": "I could watch it again tonight."},
        {"task": "nli", "input": {"premise": "A boy feeds ducks at a pond.", "hypothesis": "The boy is asleep."}},
        {"task": "topic", "input": "The central bank left its interest rate where it was."},
        {"task": "no-such-task", "input": "Nobody has taught this one yet."},
    ]
    asked = [f"{request['task']}: {json.dumps(request['input'])}" for request in requests]
    show("Mixed tasks", asked, post(chorus, "/v1/generate", {"requests": requests}))


def fan_out(chorus: httpx.Client) -> None:
    """One text for several tasks."""
    tasks = ["sentiment", "topic", "subjectivity"]
    body = {"tasks": tasks, "input": "A tired sequel that its own director calls a mistake."}
    show("Fan-out", tasks, post(chorus, "/v1/generate", body))


def stream(chorus: httpx.Client) -> None:
    """Server-sent events: each carries the next piece of text, the last one why it ended and what it used."""
    print("Streaming")
    body = {"input": "It has heart, and jokes that land.", "stream": True}
    with chorus.stream("POST", "/v1/tasks/sentiment/generate", json=body) as response:
        for event in events(response):
            print(f"  {event.get('text', '')!r} {event.get('finish_reason') or ''}".rstrip())


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    if response.is_error:
        response.read()
        checked(response)
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def post(chorus: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = checked(chorus.post(path, json=body))["outputs"]
    return outputs


def show(title: str, asked: list[str], outputs: list[dict[str, Any]]) -> None:
    print(title)
    for question, output in zip(asked, outputs, strict=True):
        if output["error"]:
            print(f"  {question}\n    error: {output['error']['message']}")
            continue
        scores = "".join(f"  {label} {share:.0%}" for label, share in (output["scores"] or {}).items())
        print(f"  {question}\n    {output['task']}@{output['version']}: {output['text']}{scores}")
    print()


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
    return parser.parse_args()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except httpx.ConnectError as error:
        sys.exit(f"No Chorus answers at {error.request.url}. Start one with: make serve")
