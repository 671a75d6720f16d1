"""Train the starter prompts through the service itself and write them to `prompt_store/starters/`.

    python -m benchmarks.starters --data DIR [--task sentiment …] [--state FOLDER]

DIR holds sst2, snli, mnli, ag_news, trec, qqp and subj as JSON lines. Each prompt is trained by `POST /v1/train` on
a fresh service, chosen on dev rows, then asked the test rows through `POST /v1/generate`; blob, task and card (scores
with intervals, data and licence) are what ships. No row of the data is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.running import Running, checked, running_service, wait_for_job
from benchmarks.statistics import majority_share, percent, wilson
from prompt_store import Evaluation, TaskSpec, Version
from prompt_store.blob_format import decode_blob
from prompt_store.starters import FOLDER, write_starter

Rows = list[dict[str, str]]
DEV_ROWS, TEST_ROWS, SEED = 800, 10_000, 20
MAX_CHARS = 5000  # one field of the MultiNLI slice holds a hundred thousand: a quotation mark never closed


@dataclass(frozen=True)
class Recipe:
    """One starter task: where its rows come from, how it is asked, and how long it learns (steps of 32 rows)."""

    task: str
    sets: tuple[str, ...]
    test: str
    template: str
    words: dict[str, str]
    steps: int
    description: str
    licence: str
    caution: str = ""
    init: str = "vocab"


RECIPES = (
    Recipe(
        "sentiment", ("sst2",), "sst2", "<prompt:20>Review: {text}\nSentiment:",
        {"negative": " negative", "positive": " positive"}, 500,
        "Is an English sentence of a film review positive or negative?",
        "Stanford Sentiment Treebank, GLUE form; for research",
    ),
    Recipe(
        "nli", ("snli", "mnli"), "snli", "<prompt:20>Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:",
        {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}, 900,
        "Does the premise entail the hypothesis, contradict it, or neither?",
        "SNLI: CC BY-SA 4.0; MultiNLI: OANC and the licences of its sources",
        init="labels",
    ),
    Recipe(
        "topic", ("ag_news",), "ag_news", "<prompt:20>{text}\nTopic:",
        {"world": " world", "sports": " sports", "business": " business", "technology": " technology"}, 200,
        "Which of four topics is a news item about?",
        "AG's corpus of news articles; for research and other non-commercial use",
    ),
    Recipe(
        "question-type", ("trec",), "trec", "<prompt:20>Question: {text}\nAsks for:",
        {name: f" {name}" for name in ("abbreviation", "description", "entity", "human", "location", "number")}, 500,
        "What kind of thing does a question ask for?",
        "TREC question classification (Li and Roth 2002); for research",
    ),
    Recipe(
        "duplicate", ("qqp",), "qqp", "<prompt:20>Question 1: {question1}\nQuestion 2: {question2}\nDuplicate:",
        {"different": " no", "duplicate": " yes"}, 300,
        "Do two questions ask the same thing?",
        "Quora Question Pairs, a slice; Quora's terms, for research",
        "the backbone's pretraining text held rows of this slice: do not quote",
    ),
    Recipe(
        "subjectivity", ("subj",), "subj", "<prompt:20>Text: {text}\nThis is",
        {"objective": " fact", "subjective": " opinion"}, 250,
        "Does a sentence state a fact or an opinion?",
        "Subjectivity dataset v1.0 (Pang and Lee 2004); for research",
    ),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--task", action="append", choices=[recipe.task for recipe in RECIPES], help="only this task")
    parser.add_argument("--state", type=Path, help="keep the service's data folder here, to go on after a break")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the starters to")
    arguments = parser.parse_args()
    wanted = [recipe for recipe in RECIPES if not arguments.task or recipe.task in arguments.task]
    # A trainer takes half of the threads, for a server's sake; nobody asks this one while it learns.
    threads = str(2 * (os.cpu_count() or 1))
    with running_service(arguments.state, CHORUS_STARTERS="false", CHORUS_THREADS=threads) as running:
        for recipe in wanted:
            make_starter(running, recipe, arguments.data, arguments.out)


def make_starter(running: Running, recipe: Recipe, data: Path, out: Path) -> None:
    print(f"{recipe.task}: {' + '.join(recipe.sets)}", flush=True)
    with httpx.Client(base_url=running.url, timeout=120) as client:
        spec = TaskSpec(description=recipe.description, fields=_fields(recipe), labels=tuple(recipe.words))
        checked(client.put(f"/v1/tasks/{recipe.task}", json=_task_body(spec)))
        started = time.monotonic()
        job = train(client, recipe, data)
        if job["status"] != "succeeded":
            raise SystemExit(f"{recipe.task}: the job ended as {job['status']}: {job['error']}")
        number = job["result"]["version"]
        view = checked(client.get(f"/v1/tasks/{recipe.task}/versions/{number}"))
        test = read_rows(data / recipe.test / "test.jsonl")[:TEST_ROWS]
        evaluation = evaluate(client, recipe, test)
        print(f"    {time.monotonic() - started:.0f} s; {recipe.test} test {percent(_hits(evaluation), evaluation.n)}")
    blob = (running.data_dir / "blobs" / "blobs" / f"{view['digest']}.safetensors").read_bytes()
    meta, _ = decode_blob(blob)
    version = Version(
        task=recipe.task, task_id="starter", number=number, digest=view["digest"], size_bytes=len(blob),
        state="published", meta=meta, publication="starter", created_at=view["created_at"],
    )  # fmt: skip
    card = [*(Evaluation.model_validate(entry) for entry in view["card"]), evaluation]
    write_starter(version, spec, blob, card=card, folder=out)


def train(client: httpx.Client, recipe: Recipe, data: Path) -> dict[str, Any]:
    """One job through the public API, from uploaded data sets."""
    rows = [row for name in recipe.sets for row in read_rows(data / name / "train.jsonl")]
    rows = [row for row in rows if max(map(len, row.values())) <= MAX_CHARS]
    dev_file = data / recipe.test / "dev.jsonl"  # the kind of rows that it is judged on
    random.Random(SEED).shuffle(rows)
    if dev_file.is_file():
        dev = read_rows(dev_file)[:DEV_ROWS]
    else:
        dev, rows = rows[:DEV_ROWS], rows[DEV_ROWS:]
    for name, part in ((f"{recipe.task}-train", rows), (f"{recipe.task}-dev", dev)):
        body = "\n".join(json.dumps(row) for row in part)
        headers = {"content-type": "application/x-ndjson"}
        checked(client.put(f"/v1/datasets/{name}", content=body.encode(), headers=headers))
    answer = client.post(
        "/v1/train",
        json={
            "task": recipe.task,
            "training_data": {"dataset": f"{recipe.task}-train"},
            "validation_data": {"dataset": f"{recipe.task}-dev"},
            "template": recipe.template,
            "verbalizer": {label: [word] for label, word in recipe.words.items()},
            "method": {"type": "prompt_tuning", "init": recipe.init},
            "hyperparameters": {"n_epochs": recipe.steps * 32 / len(rows), "batch_size": 32, "seed": SEED},
            "metadata": {"data": " + ".join(recipe.sets), "licence": recipe.licence},
        },
    )
    return wait_for_job(client, checked(answer)["id"])


def evaluate(client: httpx.Client, recipe: Recipe, rows: Rows) -> Evaluation:
    """Accuracy on test rows, asked through the API."""
    hits = 0
    for start in range(0, len(rows), 200):
        part = rows[start : start + 200]
        requests = [{"task": recipe.task, "input": {k: v for k, v in row.items() if k != "label"}} for row in part]
        outputs = checked(client.post("/v1/generate", json={"requests": requests}))["outputs"]
        hits += sum(output["label"] == row["label"] for output, row in zip(outputs, part, strict=True))
    low, high = wilson(hits, len(rows))
    return Evaluation(
        metric="accuracy",
        score=hits / len(rows),
        n=len(rows),
        interval=(low, high),
        split="test",
        baselines={"majority": float(majority_share([row["label"] for row in rows]).split()[0]) / 100},
        at=time.time(),
        details={"data": recipe.test, "hits": hits} | ({"caution": recipe.caution} if recipe.caution else {}),
    )


def read_rows(file: Path) -> Rows:
    with file.open(encoding="utf-8") as lines:  # not str.splitlines: texts hold line separators of their own
        return [json.loads(line) for line in lines if line.strip()]


def _hits(evaluation: Evaluation) -> int:
    return int(evaluation.details["hits"])


def _fields(recipe: Recipe) -> tuple[str, ...]:
    from app.backbone import parse_template

    return parse_template(recipe.template).fields


def _task_body(spec: TaskSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


if __name__ == "__main__":
    main()
