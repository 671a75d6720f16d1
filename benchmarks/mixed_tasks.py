"""Two tasks shuffled together: does a row's answer change with its batch, and how good are the starters?

    python -m benchmarks.mixed_tasks --data DIR [--rows 1000] [--write docs/results/mixed-tasks.md]

Sends `--rows` sst2-test and `--rows` snli-test rows shuffled into mixed requests from several clients at once, then
each row again alone, and compares label and probabilities. Equal means: probabilities within 1e-4, and the same label
wherever the two most likely labels are further apart than that; exceptions are counted and printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

import httpx
import torch

from app.backbone import (
    Backbone,
    BackboneConfig,
    compile_verbalizer,
    default_bos,
    encode_row,
    load_backbone,
    parse_template,
    score_labels,
)
from benchmarks.running import running_service
from benchmarks.starters import RECIPES, Recipe, read_rows
from benchmarks.statistics import conditions, majority_share, percent

TOLERANCE = 1e-4
BATCH, CLIENTS = 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    recipes = [recipe for recipe in RECIPES if recipe.task in ("sentiment", "nli")]
    rows = []
    for recipe in recipes:
        test = read_rows(arguments.data / recipe.test / "test.jsonl")
        random.Random(1).shuffle(test)
        rows += [(recipe, row) for row in test[: arguments.rows]]
    random.Random(2).shuffle(rows)
    with running_service() as running:
        mixed, mixed_s = asyncio.run(ask(running.url, rows, size=BATCH, clients=CLIENTS))
        alone, alone_s = asyncio.run(ask(running.url, rows, size=1, clients=1))
    report = render(recipes, rows, mixed, alone, mixed_s, alone_s)
    print(report)
    if arguments.write:
        arguments.write.write_text(report, encoding="utf-8")


async def ask(url: str, rows: list[Any], *, size: int, clients: int) -> tuple[list[dict[str, Any]], float]:
    """Answers in the order of `rows`, asked `size` at a time by `clients` clients; and the seconds it took."""
    answers: list[Any] = [None] * len(rows)
    starts = iter(range(0, len(rows), size))
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def work() -> None:
            for start in starts:
                part = rows[start : start + size]
                body = [{"task": recipe.task, "input": inputs(row), "scores": True} for recipe, row in part]
                reply = await client.post("/v1/generate", json={"requests": body})
                answers[start : start + size] = reply.raise_for_status().json()["outputs"]

        await asyncio.gather(*(work() for _ in range(clients)))
    return answers, time.monotonic() - began


def inputs(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != "label"}


def compare(mixed: list[Any], alone: list[Any]) -> tuple[float, int, int]:
    """(largest difference of a probability, labels that differ beyond a close call, close calls that differ)."""
    worst, wrong, close = 0.0, 0, 0
    for one, other in zip(mixed, alone, strict=True):
        worst = max(worst, *(abs(one["scores"][label] - p) for label, p in other["scores"].items()))
        if one["label"] != other["label"]:
            first, second, *_ = sorted(other["scores"].values(), reverse=True)
            wrong, close = (wrong + 1, close) if first - second > TOLERANCE else (wrong, close + 1)
    return worst, wrong, close


def zero_shot(backbone: Backbone, recipe: Recipe, rows: list[dict[str, str]]) -> int:
    """Hits of the recipe's words without its vectors, by the same scoring."""
    template = parse_template(recipe.template).without_slots()
    assert recipe.words is not None
    verbalizer = compile_verbalizer(backbone.tokenizer, {label: [word] for label, word in recipe.words.items()})
    hits = 0
    with torch.no_grad():
        for row in rows:
            encoded = encode_row(backbone.tokenizer, template, default_bos(backbone.tokenizer), inputs(row))
            best = int(score_labels(backbone, [encoded], [None], [verbalizer])[0].argmax())
            hits += verbalizer.labels[best] == row["label"]
    return hits


def render(
    recipes: list[Recipe], rows: list[Any], mixed: list[Any], alone: list[Any], mixed_s: float, alone_s: float
) -> str:
    worst, wrong, close = compare(mixed, alone)
    backbone = load_backbone(BackboneConfig())
    lines = [
        "# Mixed tasks in one batch",
        "",
        f"`python -m benchmarks.mixed_tasks`; {conditions()}; backbone {backbone.name}, float32.",
        "",
        f"{len(rows)} rows of {len(recipes)} tasks shuffled together ({CLIENTS} clients, {BATCH} rows a request), "
        "then each row alone:",
        "",
        "| | |",
        "|---|---|",
        f"| labels that differ | {wrong} |",
        f"| labels that differ at a close call (top two within {TOLERANCE:g}) | {close} |",
        f"| largest difference of a probability | {worst:.1e} |",
        f"| rows with an error | {sum(a['error'] is not None for a in (*mixed, *alone))} |",
        f"| time mixed : alone | 1 : {alone_s / mixed_s:.1f} |",
        "",
        "| task | test set | rows | starter prompt | same words, no prompt | majority |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        pairs = [(row, answer) for (r, row), answer in zip(rows, mixed, strict=True) if r is recipe]
        hits = sum(row["label"] == answer["label"] for row, answer in pairs)
        bare = zero_shot(backbone, recipe, [row for row, _ in pairs])
        n = len(pairs)
        majority = majority_share([row["label"] for row, _ in pairs])
        lines.append(f"| {recipe.task} | {recipe.test} | {n} | {percent(hits, n)} | {percent(bare, n)} | {majority} |")
    return "\n".join([*lines, "", "Shares with 95 % Wilson intervals.", ""])


if __name__ == "__main__":
    main()
