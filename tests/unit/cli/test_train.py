"""Promises of `chorus train` and `chorus jobs`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.cli import watch
from app.cli.commands.train import dataset_name
from app.cli.errors import Exit
from tests.unit.cli.conftest import FakeService, Ran

JOB = "job-" + "0" * 20
EVENTS = f"GET /v1/train/{JOB}/events"
RESULT = {"version": 4, "digest": "cd" * 32, "promoted": True}


def job(status: str, **fields: Any) -> dict[str, Any]:
    base = {"id": JOB, "task": "tickets", "status": status, "created_at": 0.0, "started_at": 1.0, "finished_at": 9.0}
    return {**base, "publish": {"when": "always", "alias": "prod"}, "result": None, "error": None, **fields}


def stream(*events: tuple[str, str, dict[str, Any]], done: bool = True) -> bytes:
    """Events as the service sends them: (type, message, data), with ids from 1."""
    text = ""
    for number, (kind, message, data) in enumerate(events, start=1):
        body = json.dumps({"id": f"{number}-0", "at": 0.0, "type": kind, "message": message, "data": data})
        text += f"id: {number}-0\nevent: {kind}\ndata: {body}\n\n"
    return (text + ("data: [DONE]\n\n" if done else "")).encode()


STORY = (
    ("status", "running", {}),
    ("progress", "", {"step": 10, "total": 40, "loss": 0.91, "score": 0.5, "eta_s": 75}),
    ("progress", "", {"step": 40, "total": 40, "loss": 0.21, "score": 0.875, "eta_s": 0}),
    ("warning", "few rows", {}),
    ("status", "succeeded", {}),
)


@pytest.fixture
def rows(tmp_path: Path, service: FakeService) -> Path:
    """A file of rows, and a service that takes it, trains and succeeds."""
    service.on("PUT /v1/datasets/tickets", {"name": "tickets", "rows": 2})
    service.on("POST /v1/train", job("queued"), status=202)
    service.on(EVENTS, stream(*STORY), content_type="text/event-stream")
    service.on(f"GET /v1/train/{JOB}", job("succeeded", result=RESULT))
    card = [{"metric": "accuracy", "score": 0.875, "n": 40, "interval": [0.7, 0.95], "baselines": {"majority": 0.2}}]
    service.on("GET /v1/tasks/tickets/versions/4", {"card": card, "num_virtual_tokens": 20})
    file = tmp_path / "Tickets.jsonl"
    file.write_text('{"text": "a", "label": "b"}\n')
    return file


def test_train_uploads_the_rows_and_starts_a_job(chorus: Callable[..., Ran], service: FakeService, rows: Path) -> None:
    ran = chorus("train", str(rows), "--task", "tickets")
    assert ran.code == Exit.DONE
    assert JOB in ran.out
    upload, start = service.asked
    assert upload.headers["content-type"] == "application/jsonl"
    assert upload.body == rows.read_bytes()
    assert start.json == {
        "task": "tickets",
        "training_data": {"dataset": "tickets"},
        "publish": {"when": "always", "alias": "prod"},
    }


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("--method hard", {"type": "hard"}),
        ("--method p_tuning --method-option encoder=lstm", {"type": "p_tuning", "encoder": "lstm"}),
        (
            '--method multitask --method-option num_ranks=4 --method-option source=["a@1","b"]',
            {"type": "multitask", "num_ranks": 4, "source": ["a@1", "b"]},
        ),
        ("--method prefix_tuning --init zero", {"type": "prefix_tuning", "init": "zero"}),
        ("--method-option init_text=a=b", {"type": "prompt_tuning", "init_text": "a=b"}),
    ],
)
def test_train_with_a_method_sends_its_options(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, words: str, sent: dict[str, Any]
) -> None:
    chorus("train", str(rows), "--task", "tickets", *words.split())
    assert service.asked[-1].json["method"] == sent


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("--sweep learning_rate=0.1,0.3 --sweep seed=1,2", {"learning_rate": [0.1, 0.3], "seed": [1, 2]}),
        ("--sweep seed=1 --sweep seed=2,3", {"seed": [1, 2, 3]}),
        ("--sweep init=vocab,labels --keep-all", {"init": ["vocab", "labels"], "halving": False}),
        ("--sweep learning-rate=auto,1e-3", {"learning_rate": ["auto", 1e-3]}),
        ("--sweep method=p_tuning,residual", {"method": [{"type": "p_tuning"}, {"type": "residual"}]}),
        (
            '--sweep method=[{"type":"p_tuning","encoder":"lstm"},{"type":"residual"}]',
            {"method": [{"type": "p_tuning", "encoder": "lstm"}, {"type": "residual"}]},
        ),
        (
            "--sweep template={text},<prompt:4> --sweep template=<prompt>{text}",
            {"template": ["{text},<prompt:4>", "<prompt>{text}"]},
        ),
    ],
)
def test_train_with_a_sweep_sends_its_lists(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, words: str, sent: dict[str, Any]
) -> None:
    chorus("train", str(rows), "--task", "tickets", *words.split(), "--top-k", "3")
    assert service.asked[-1].json["sweep"] == sent
    assert service.asked[-1].json["publish"]["top_k"] == 3


@pytest.mark.parametrize("words", ["--sweep seed", "--sweep =1,2", "--sweep seed=", "--keep-all"])
def test_train_with_a_sweep_that_is_none_says_how(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, words: str
) -> None:
    ran = chorus("train", str(rows), "--task", "tickets", *words.split())
    assert ran.code == Exit.USAGE
    assert not service.asked


def test_train_of_a_sweep_when_watched_shows_members(
    chorus: Callable[..., Ran], service: FakeService, rows: Path
) -> None:
    def row(member: int, state: str, **more: Any) -> dict[str, Any]:
        found = {"member": member, "settings": {"seed": member}, "state": state, "score": 0.5, "steps": 10}
        return {**found, **more}

    table = [row(1, "stopped", round=1), row(2, "won", score=0.875), row(3, "diverged", score=None), row(4, "chosen")]
    ensemble = [{"version": 4, "digest": "cd" * 32}, {"version": 5, "digest": "ef" * 32}]
    service.answers[f"GET /v1/train/{JOB}"] = []
    service.on(f"GET /v1/train/{JOB}", job("succeeded", result={**RESULT, "ensemble": ensemble, "sweep": table}))
    service.answers[EVENTS] = []
    story = (
        ("metrics", "member 1 (seed 1) step 5: accuracy 0.5000", {"member": 1, "best": False, "step": 5}),
        ("metrics", "member 2 (seed 2) step 5: accuracy 0.8750", {"member": 2, "best": True, "step": 5}),
        ("progress", "", {"step": 10, "total": 40, "loss": 0.91, "score": 0.5, "leader": 2, "learning": 3}),
        ("message", "step 10: 2 members go on; stopped: 1", {}),
        ("status", "succeeded", {}),
    )
    service.on(EVENTS, stream(*story), content_type="text/event-stream")
    out = chorus("train", str(rows), "--task", "tickets", "--watch").out
    for part in (
        "member 2 (seed 2) step 5",
        "led by member 2, 3 learn",
        "2 members go on",
        "stopped in round 1",
        "diverged",
    ):
        assert part in out
    assert "member 1 (seed 1) step 5" not in out
    assert "tickets@4,5 are published and answer for tickets:prod by vote" in out


@pytest.mark.parametrize("option", ["encoder", "=lstm", " =1"])
def test_train_with_a_method_option_that_is_none_says_how(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, option: str
) -> None:
    ran = chorus("train", str(rows), "--task", "tickets", "--method-option", option)
    assert ran.code == Exit.USAGE
    assert "KEY=VALUE" in ran.err
    assert not service.asked


def test_train_with_options_sends_them(chorus: Callable[..., Ran], service: FakeService, rows: Path) -> None:
    options = (
        "--template {text}<prompt:8> --init text --init-text route --reparametrization none --virtual-tokens 8 "
        "--epochs 3 --batch-size 4 --learning-rate 0.5 --seed 1 --publish better_than_current --alias canary "
        "--gate-metric loss --min-gain 0.01 --confidence 0.9 --idempotency-key k"
    )
    chorus("train", str(rows), "--task", "tickets", *options.split(), "--verbalizer", '{"b": [" bee"]}')
    sent = service.asked[-1]
    assert sent.headers["idempotency-key"] == "k"
    assert sent.json["hyperparameters"] == {
        **{"num_virtual_tokens": 8, "n_epochs": 3.0, "batch_size": 4, "learning_rate": 0.5, "seed": 1}
    }
    assert sent.json["method"] == {
        **{"type": "prompt_tuning", "init": "text", "init_text": "route", "reparametrization": "none"}
    }
    gate = {"metric": "loss", "min_gain": 0.01, "confidence": 0.9}
    assert sent.json["publish"] == {"when": "better_than_current", "alias": "canary", **gate}
    assert sent.json["template"] == "{text}<prompt:8>"
    assert sent.json["verbalizer"] == {"b": [" bee"]}


def test_train_when_watched_tells_the_story_and_the_end(
    chorus: Callable[..., Ran], service: FakeService, rows: Path
) -> None:
    ran = chorus("train", str(rows), "--task", "tickets", "--watch")
    assert ran.code == Exit.DONE
    for part in ("step 10/40", "loss 0.910", "ETA 1:15", "step 40/40", "few rows", "✓ tickets@4", "accuracy 0.875"):
        assert part in ran.out


def test_train_when_watched_as_json_prints_events_and_the_job(
    chorus: Callable[..., Ran], service: FakeService, rows: Path
) -> None:
    lines = chorus("train", str(rows), "--task", "tickets", "--watch", "--json").lines
    assert [line["type"] for line in lines[:-1]] == [kind for kind, _, _ in STORY]
    assert lines[-1]["result"] == RESULT


def test_watch_when_the_connection_breaks_goes_on_behind_the_last_event(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RECONNECT_S", 0)
    service.answers[EVENTS] = []
    service.on(EVENTS, stream(*STORY[:2], done=False), content_type="text/event-stream")
    service.refuse(EVENTS, 503, "draining")
    service.on(EVENTS, stream(*STORY[2:]), content_type="text/event-stream")
    service.answers[f"GET /v1/train/{JOB}"] = []
    service.on(f"GET /v1/train/{JOB}", job("running"))
    service.on(f"GET /v1/train/{JOB}", job("succeeded", result=RESULT))
    ran = chorus("train", str(rows), "--task", "tickets", "--watch", "--json")
    assert len(ran.lines) == len(STORY) + 1
    assert [one.headers.get("last-event-id") for one in service.asked if "events" in one.path] == [None, "2-0", "2-0"]


def test_jobs_when_the_job_failed_says_why(chorus: Callable[..., Ran], service: FakeService) -> None:
    error = {"code": "diverged", "message": "the loss became NaN", "param": None, "row": None}
    service.on(f"GET /v1/train/{JOB}", job("failed", error=error))
    ran = chorus("jobs", JOB)
    assert ran.code == Exit.FAILED
    assert "the loss became NaN" in ran.err
    assert "diverged" in ran.err


def test_train_when_both_files_have_one_name_checks_on_rows_of_their_own(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, tmp_path: Path
) -> None:
    other = tmp_path / "held-out" / "tickets.jsonl"
    other.parent.mkdir()
    other.write_text('{"text": "c", "label": "d"}\n')
    service.on("PUT /v1/datasets/tickets-validation", {"name": "tickets-validation", "rows": 1})
    chorus("train", str(rows), "--task", "tickets", "--validation", str(other))
    first, second, start = service.asked
    assert (first.path, first.body) == ("/v1/datasets/tickets", rows.read_bytes())
    assert (second.path, second.body) == ("/v1/datasets/tickets-validation", other.read_bytes())
    assert start.json["training_data"] == {"dataset": "tickets"}
    assert start.json["validation_data"] == {"dataset": "tickets-validation"}


@pytest.mark.parametrize(
    "words", [["jobs", JOB], ["jobs", JOB, "--watch"], ["train", "ROWS", "--task", "t", "--watch"]]
)
def test_job_that_failed_as_json_prints_lines_of_json_the_job_last(
    chorus: Callable[..., Ran], service: FakeService, rows: Path, words: list[str]
) -> None:
    failed = job("failed", error={"code": "diverged", "message": "the loss became NaN"})
    service.answers[f"GET /v1/train/{JOB}"] = []
    service.on(f"GET /v1/train/{JOB}", failed)
    ran = chorus(*(str(rows) if word == "ROWS" else word for word in words), "--json")
    assert ran.code == Exit.FAILED
    assert ran.lines[-1] == failed
    assert len(ran.lines) == 1 + ("--watch" in words) * len(STORY)
    assert ran.err == ""


def test_jobs_when_cancelled_says_so(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on(f"POST /v1/train/{JOB}/cancel", job("cancelled"))
    ran = chorus("jobs", JOB, "--cancel")
    assert ran.code == Exit.DONE
    assert "cancelled" in ran.out


def test_jobs_lists_the_latest(chorus: Callable[..., Ran], service: FakeService) -> None:
    running = job("running", progress={"step": 3, "total": 9})
    service.on("GET /v1/train", {"data": [running, job("succeeded", result=RESULT)], "has_more": True})
    lines = chorus("jobs", "--limit", "2").out.splitlines()
    assert "3/9" in lines[1]
    assert "tickets@4" in lines[2]
    assert "limit=2" in service.asked[0].path


def test_train_when_the_file_is_unusable_exits_with_usage(chorus: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    assert chorus("train", str(tmp_path / "rows.txt"), "--task", "t").code == Exit.USAGE
    assert chorus("train", str(tmp_path / "absent.csv"), "--task", "t").code == Exit.USAGE
    assert chorus("train", str(tmp_path / "absent.csv"), "--task", "t", "--verbalizer", "{").code == Exit.USAGE


def test_train_when_a_row_is_wrong_shows_its_number(
    chorus: Callable[..., Ran], service: FakeService, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n")
    service.refuse("PUT /v1/datasets/rows", 422, "invalid_dataset", "row 3: the field `label` is missing")
    ran = chorus("train", str(file), "--task", "t")
    assert ran.code == Exit.REFUSED
    assert "row 3" in ran.err


@pytest.mark.parametrize(
    ("file", "name"), [("My Tickets (2).jsonl", "my-tickets-2"), ("données.csv", "donn-es"), ("__.csv", "rows")]
)
def test_dataset_name_from_a_file_is_one_the_service_takes(file: str, name: str) -> None:
    assert dataset_name(Path(file)) == name
