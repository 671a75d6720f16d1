"""A job is submitted, trained and published while sixteen clients keep asking: does anybody notice?

    python -m benchmarks.train_under_load [--clients 16] [--write docs/results/train-under-load.md]

Twice over: a task is trained for the first time, then retrained, while the clients ask a starter task and the task
itself. Counts requests that failed, answers whose version is not the one their task's alias named while they ran, and
the time from the job's end to the first answer of the new version.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.running import running_service
from benchmarks.statistics import conditions

ROWS = Path(__file__).parent.parent / "examples" / "tickets.jsonl"
TASK, STEADY = "tickets", "sentiment"


@dataclass
class Tally:
    """What the clients saw. `versions` are (time of sending, time of answer, version) of the trained task's answers."""

    asked: int = 0
    failures: list[str] = field(default_factory=list)
    steady_versions: set[int] = field(default_factory=set)
    versions: list[tuple[float, float, int]] = field(default_factory=list)
    slowest_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    with running_service() as running:
        report = asyncio.run(measure(running.url, arguments.clients))
    print(report)
    if arguments.write:
        arguments.write.write_text(report, encoding="utf-8")


async def measure(url: str, clients: int) -> str:
    tally, stop = Tally(), asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await train(client, None, tally)  # the first version, so that the clients have something to ask
        load = [asyncio.create_task(keep_asking(client, i, tally, stop)) for i in range(clients)]
        began = time.monotonic()
        jobs = [await train(client, number, tally) for number in (2, 3)]
        await asyncio.sleep(2)
        seconds = time.monotonic() - began
        stop.set()
        await asyncio.gather(*load)
    return render(tally, jobs, clients, seconds)


async def train(client: httpx.AsyncClient, number: int | None, tally: Tally) -> tuple[float, float, int]:
    """Run a job to its end. Returns (seconds it took, seconds until its version answered, attempts)."""
    await client.put(
        "/v1/datasets/tickets", content=ROWS.read_bytes(), headers={"content-type": "application/x-ndjson"}
    )
    began = time.monotonic()
    body = {"task": TASK, "training_data": {"dataset": "tickets"}, "hyperparameters": {"seed": number or 1}}
    job = (await client.post("/v1/train", json=body)).raise_for_status().json()
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        await asyncio.sleep(0.05)
        job = (await client.get(f"/v1/train/{job['id']}")).raise_for_status().json()
    ended = time.monotonic()
    if job["status"] != "succeeded":
        raise SystemExit(f"the job ended as {job['status']}: {job['error']}")
    wanted = job["result"]["version"]
    while True:
        reply = await client.post(f"/v1/tasks/{TASK}/generate", json={"input": "where is my parcel?"})
        if reply.status_code == 200 and reply.json()["outputs"][0]["version"] == wanted:
            return ended - began, time.monotonic() - ended, job.get("attempt", 1)
        await asyncio.sleep(0.02)


async def keep_asking(client: httpx.AsyncClient, index: int, tally: Tally, stop: asyncio.Event) -> None:
    """A closed loop with a short pause: a steady load, not a flood."""
    task = TASK if index % 2 else STEADY
    while not stop.is_set():
        sent = time.monotonic()
        try:
            reply = await client.post(f"/v1/tasks/{task}/generate", json={"input": f"request {index} of many"})
        except httpx.HTTPError as error:
            tally.failures.append(type(error).__name__)
            continue
        tally.asked += 1
        answered = time.monotonic()
        tally.slowest_s = max(tally.slowest_s, answered - sent)
        if reply.status_code != 200:
            tally.failures.append(f"{reply.status_code} {reply.json()['error']['code']}")
        elif task == TASK:
            tally.versions.append((sent, answered, reply.json()["outputs"][0]["version"]))
        else:
            tally.steady_versions.add(reply.json()["outputs"][0]["version"])
        await asyncio.sleep(0.05)


def went_back(versions: list[tuple[float, float, int]]) -> int:
    """Answers of an older version to requests sent after a newer version had already answered."""
    seen: list[tuple[float, int]] = sorted((answered, version) for _, answered, version in versions)
    back, newest, at = 0, 0, 0
    for sent, _, version in sorted(versions):
        while at < len(seen) and seen[at][0] < sent:
            newest, at = max(newest, seen[at][1]), at + 1
        back += version < newest
    return back


def render(tally: Tally, jobs: list[tuple[float, float, int]], clients: int, seconds: float) -> str:
    lines = [
        "# Training while serving",
        "",
        f"`python -m benchmarks.train_under_load`; {conditions()}; {clients} clients in a closed loop, one worker.",
        "",
        "| | |",
        "|---|---|",
        f"| requests while training | {tally.asked} in {seconds:.0f} s |",
        f"| requests that failed | {len(tally.failures)} {sorted(set(tally.failures)) or ''} |",
        f"| versions that answered the other task | {sorted(tally.steady_versions)} |",
        f"| answers that went back to an older version | {went_back(tally.versions)} |",
        f"| slowest answer | {tally.slowest_s:.2f} s |",
        *(
            f"| job {i}: to `succeeded`; from there to its first answer | {took:.0f} s; {lag:.2f} s |"
            for i, (took, lag, _) in enumerate(jobs, start=1)
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
