"""The starter prompts on sentences that no data set holds.

    python -m benchmarks.handwritten [--url URL] [--write docs/results/handwritten.md]

`benchmarks/written/` holds 50 sentences for sentiment and 50 pairs for nli, ten in each of five styles. They were
frozen before any model was asked them (their digests are kept by a test) and serve for nothing but this: no training,
no choice of a prompt, no wording. Without `--url` a service is started with the bundled backbone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.running import checked, running_service
from benchmarks.statistics import conditions, majority_share, percent

FOLDER = Path(__file__).parent / "written"
TASKS = ("sentiment", "nli")
GOALS = {"sentiment": 80, "nli": 65}

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", help="a running service with the starters; without it one is started")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if given.url:
        report = ask_all(given.url)
    else:
        with running_service() as running:
            report = ask_all(running.url)
    print(report)
    if given.write:
        given.write.write_text(report, encoding="utf-8")


def written(task: str) -> list[Row]:
    """The rows of a task, each with its `label` and `style`."""
    return [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def ask_all(url: str) -> str:
    with httpx.Client(base_url=url, timeout=120) as client:
        backbone = checked(client.get("/health"))["backbone"]
        found = {task: (written(task), ask(client, task, written(task))) for task in TASKS}
    return report_of(found, str(backbone["name"]))


def ask(client: httpx.Client, task: str, rows: Sequence[Row]) -> list[str]:
    """What the task's `prod` says of each row."""
    inputs = [{name: text for name, text in row.items() if name not in ("label", "style")} for row in rows]
    answer = checked(client.post(f"/v1/tasks/{task}/generate", json={"inputs": inputs}))
    return [output["label"] for output in answer["outputs"]]


def report_of(found: dict[str, tuple[list[Row], list[str]]], backbone: str) -> str:
    """The Markdown page: accuracy with its interval, by style, and every row that was answered wrongly."""
    lines = [
        "# Sentences that no data set holds",
        "",
        f"`python -m benchmarks.handwritten`; backbone {backbone}; {conditions()}. 95 % intervals (Wilson).",
        "",
        "| task | rows | accuracy | goal | majority | by style, of ten |",
        "|---|---|---|---|---|---|",
    ]
    for task, (rows, answers) in found.items():
        hits = [row["label"] == answer for row, answer in zip(rows, answers, strict=True)]
        styles = Counter(row["style"] for row, hit in zip(rows, hits, strict=True) if hit)
        by_style = ", ".join(f"{style} {styles[style]}" for style in dict.fromkeys(row["style"] for row in rows))
        lines.append(
            f"| {task} | {len(rows)} | {percent(sum(hits), len(hits))} | ≥ {GOALS[task]} % "
            f"| {majority_share([row['label'] for row in rows])} | {by_style} |"
        )
    for task, (rows, answers) in found.items():
        lines += ["", f"## Wrong: {task}", ""]
        for row, answer in zip(rows, answers, strict=True):
            if row["label"] != answer:
                text = " / ".join(value for name, value in row.items() if name not in ("label", "style"))
                lines.append(f"- {text} Said {answer}, is {row['label']}.")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
