"""Following a training job: a progress bar for people, a line for each event in a log, JSON lines for programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from app.cli.commands.tasks import baselines, score, when
from app.cli.errors import CliError, Exit
from app.cli.output import Output, clean, spark
from app.cli.sweep import show_members

if TYPE_CHECKING:
    from app.cli.client import ChorusClient

ENDED = ("succeeded", "failed", "cancelled")
RECONNECT_S = 1.0
MAX_RECONNECTS = 60
LOG_EVERY_S = 5.0
WIDE_CELLS = 110
WAITING = ("validating", "queued")

Event = dict[str, Any]


def watch_job(client: ChorusClient, job: dict[str, Any], out: Output) -> None:
    """Follow `job` to its end. Raises as `show_job` does when it failed, and CliError when the watcher is
    interrupted."""
    try:
        if out.as_json:
            for event in follow(client, job["id"]):
                out.line(event)
        elif out.live:
            _show_bar(follow(client, job["id"]), job, out)
        else:
            _show_lines(follow(client, job["id"]), out)
    except KeyboardInterrupt:
        raise CliError(
            "stopped watching; the job goes on",
            Exit.INTERRUPTED,
            fix=f"watch it again: chorus jobs {job['id']} --watch · end it: chorus jobs {job['id']} --cancel",
        ) from None
    show_job(client, client.job(job["id"]), out)


def follow(client: ChorusClient, job_id: str) -> Iterator[Event]:
    """All events of a job to its end, over as many connections as it takes. Raises CliError after a minute of none."""
    after: str | None = None
    lost = 0
    while True:
        try:
            for event in client.job_events(job_id, after=after):
                if event.name == "error":
                    raise CliError(event.json()["error"]["message"], Exit.UNREACHABLE)
                after, lost = event.id or after, 0
                yield event.json()
            if client.job(job_id)["status"] in ENDED:
                return
        except CliError as error:
            lost += 1
            if error.exit_code != Exit.UNREACHABLE or lost > MAX_RECONNECTS:
                raise
        time.sleep(RECONNECT_S)


def show_job(client: ChorusClient, job: dict[str, Any], out: Output) -> None:
    """One job as it stands. Raises CliError for a failed one; as JSON it is printed, and typer.Exit raised."""
    if out.as_json:
        out.line(job)
    elif job["status"] == "succeeded":
        _show_success(client, job, out)
    elif job["status"] not in ENDED:
        out.table(["JOB", "TASK", "STATUS", "PROGRESS", "CREATED"], [_cells(job)[:5]])
    if job["status"] == "failed" and out.as_json:  # the job holds its error
        raise typer.Exit(Exit.FAILED)
    if job["status"] == "failed":
        error = job.get("error") or {}
        raise CliError(f"job {job['id']} failed: {error.get('message', 'unknown')}", detail=error)
    if job["status"] == "cancelled" and not out.as_json:
        out.say(f"Job {job['id']} was cancelled; nothing was published.")


def show_jobs(jobs: list[dict[str, Any]], out: Output) -> None:
    if out.as_json:
        out.data(jobs)
    elif not jobs:
        out.say("No job yet. Start one: chorus train FILE.jsonl --task NAME --watch")
    else:
        out.table(["JOB", "TASK", "STATUS", "PROGRESS", "CREATED", "RESULT"], [_cells(job) for job in jobs])


def _show_success(client: ChorusClient, job: dict[str, Any], out: Output) -> None:
    result = job["result"]
    if result.get("sweep"):
        show_members(result["sweep"], out)
    numbers = [one["version"] for one in result.get("ensemble") or [result]]
    name = f"{job['task']}@{result['version']}"
    names = f"{job['task']}@{','.join(map(str, numbers))}"
    are, answer, what = ("is", "answers", "a candidate") if len(numbers) == 1 else ("are", "answer", "candidates")
    if result["promoted"]:
        vote = "" if len(numbers) == 1 else " by vote"
        alias = f"{job['task']}:{job['publish']['alias']}"
        out.say(f"✓ {names} {are} published and {answer} for {alias}{vote}.", style="bold green")
    else:
        out.say(f"✓ {names} {are} kept as {what}; no alias moved.", style="bold yellow")
    version = client.version(job["task"], result["version"])
    seconds = (job.get("finished_at") or 0) - (job.get("started_at") or 0)
    facts = {
        "score": score(version["card"]),
        "baselines": baselines(version["card"]),
        "vectors": str(version["num_virtual_tokens"]),
        "digest": result["digest"][:12],
        "took": f"{seconds:.0f} s" if seconds > 0 else "",
    }
    for label, value in facts.items():
        if value:
            out.say(f"  {label:<10} {value}")
    out.note(f"Ask it: chorus generate {job['task'] if result['promoted'] else name} TEXT")


def _cells(job: dict[str, Any]) -> list[Any]:
    progress = job.get("progress") or {}
    steps = f"{progress['step']}/{progress['total']}" if progress.get("total") else ""
    if job["status"] == "queued" and job.get("queue_position"):
        steps = f"place {job['queue_position']} in the queue"
    result = job.get("result")
    ending = f"{job['task']}@{result['version']}" if result else (job.get("error") or {}).get("code")
    return [job["id"], job["task"], job["status"], steps, when(job["created_at"]), ending]


def _show_bar(events: Iterator[Event], job: dict[str, Any], out: Output) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30 if out.console.width >= WIDE_CELLS else 10),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}", markup=False),
    )
    losses: list[float] = []
    with Progress(*columns, console=out.console) as progress:
        task = progress.add_task(f"{job['task']}  {job['status']}", total=1, facts="")
        for event in events:
            _update_bar(progress, task, job["task"], event, losses)
            if event["type"] in ("warning", "message") or _leads(event):
                progress.console.print(clean(event["message"]), style="yellow" if event["type"] == "warning" else "dim")


def _leads(event: Event) -> bool:
    """Whether a member of a sweep has taken the lead."""
    data = event.get("data") or {}
    return event["type"] == "metrics" and bool(data.get("member") and data.get("best"))


def _update_bar(progress: Progress, task: TaskID, name: str, event: Event, losses: list[float]) -> None:
    data = event.get("data") or {}
    if event["type"] == "status":
        status = event["message"]
        progress.update(task, description=f"{name}  {status}")
        if status == "succeeded":
            progress.update(task, completed=progress.tasks[0].total)
    elif event["type"] == "progress" and data.get("total"):
        if data.get("loss") is not None:
            losses.append(data["loss"])
        course = spark(losses) if progress.console.width >= WIDE_CELLS else ""
        facts = "  ".join(part for part in (_facts(data), course) if part)
        progress.update(task, total=data["total"], completed=data["step"], facts=facts)


def _facts(data: dict[str, Any]) -> str:
    parts = []
    if data.get("loss") is not None:
        parts.append(f"loss {data['loss']:.3f}")
    if data.get("score") is not None:
        parts.append(f"score {data['score']:.3f}")
    if data.get("leader") is not None:
        parts.append(f"led by member {data['leader']}, {data['learning']} learn")
    if data.get("eta_s") is not None:
        parts.append(f"ETA {_clock(data['eta_s'])}")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _show_lines(events: Iterator[Event], out: Output) -> None:
    """For logs: every change of status, and the progress now and then."""
    last = float("-inf")
    for event in events:
        data = event.get("data") or {}
        if event["type"] == "progress":
            if time.monotonic() - last < LOG_EVERY_S and data.get("step") != data.get("total"):
                continue
            last = time.monotonic()
            out.say(f"step {data.get('step')}/{data.get('total')}  {_facts(data)}")
        elif event["type"] != "metrics" or _leads(event):
            out.say(event["message"])
