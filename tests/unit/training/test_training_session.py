"""One attempt in this process: from a queued job to its version, gate, card and golden outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.backbone import Backbone, LoadedPrompt, encode_row, generate_greedy, load_prompt, score_labels
from app.backbone.calibration import expected_calibration_error
from app.errors import Conflict, InvalidDataset
from app.settings import Settings
from app.training import run, session
from app.training.golden import TEXTS
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.records import job_folder
from app.training.session import Context, Lost, Session
from app.training.trainer import Interrupted
from prompt_store import PromptStore, StoreUnavailable, TaskSpec
from tests.training_data import mood_rows, short_request


def loaded(store: PromptStore, backbone: Backbone, number: int = 1, task: str = "mood") -> LoadedPrompt:
    version = store.get_version(task, number)
    return load_prompt(version, store.load(version), backbone)


def test_first_job_creates_task_version_and_alias(attempt: Callable[..., Job], store: PromptStore) -> None:
    job = attempt(metadata={"data_name": "our own", "licence": "CC0"})
    assert (job.status, job.result and job.result.version, job.result and job.result.promoted) == ("succeeded", 1, True)
    assert store.get_task("mood").spec == TaskSpec(fields=("text",), labels=("bad", "good"))
    assert store.get_alias("mood", "prod").version == 1
    version = store.get_version("mood", 1)
    assert (version.state, version.publication, version.digest) == (
        "published",
        job.id,
        job.result and job.result.digest,
    )
    assert version.meta.method == {"type": "prompt_tuning", "init": "vocab", "reparametrization": "residual_mlp"}


def test_card_says_what_the_prompt_was_compared_with_and_made_from(
    attempt: Callable[..., Job], store: PromptStore
) -> None:
    job = attempt(metadata={"data_name": "our own", "licence": "CC0"})
    (card,) = store.get_version("mood", 1).card
    assert (card.metric, card.split) == ("accuracy", "dev")
    assert card.n == 4
    assert card.interval[0] <= card.score <= card.interval[1]
    assert card.baselines["majority"] == 0.5
    assert 0 <= card.baselines["zero_shot"] <= 1
    assert card.details["data"] == {"digest": job.data["digest"], "name": None, "rows": 12}
    assert card.details["metadata"] == {"data_name": "our own", "licence": "CC0"}
    assert card.details["hyperparameters"]["seed"] == 1
    assert card.details["seconds"] > 0
    assert job.metrics["baselines"] == card.baselines
    assert card.calibration is not None
    assert card.calibration.accuracy == card.score
    assert 0 <= card.calibration.ece <= 1
    assert job.metrics["calibration"] == card.calibration.model_dump()


def test_card_calibration_is_that_of_the_answers_served(
    attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    rows = mood_rows(4)
    attempt(validation_data={"inline": rows})
    prompt = loaded(store, backbone)
    assert prompt.verbalizer is not None
    inputs = [{"text": row["text"]} for row in rows] + [{"text": text} for text in ("N/A", "", "[MASK]")]
    encoded = [encode_row(backbone.tokenizer, prompt.template, prompt.bos, one) for one in inputs]
    with torch.no_grad():
        found = score_labels(backbone, encoded, [prompt.vectors] * 7, [prompt.verbalizer] * 7)
    shares = torch.stack(found).double().softmax(1)
    divided = shares[:4] / shares[4:].mean(0)
    expected = [prompt.verbalizer.labels.index(row["label"]) for row in rows]
    card = store.get_version("mood", 1).card[0].calibration
    assert card is not None
    assert card.ece == pytest.approx(expected_calibration_error(shares[:4].log(), expected), abs=1e-4)
    assert card.ece_calibrated == pytest.approx(expected_calibration_error(divided.log(), expected), abs=1e-4)
    assert card.accuracy_calibrated == pytest.approx(
        float((divided.argmax(1) == torch.tensor(expected)).float().mean())
    )


def test_golden_outputs_are_of_our_own_texts_and_are_what_is_served(
    attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    attempt()
    prompt = loaded(store, backbone)
    assert prompt.verbalizer is not None
    assert len(prompt.golden) == 4
    for golden in prompt.golden:
        assert set(golden.input.values()) <= set(TEXTS)
        row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, golden.input)
        with torch.no_grad():
            (scores,) = score_labels(backbone, [row], [prompt.vectors], [prompt.verbalizer])
        assert golden.scores == pytest.approx(
            dict(zip(prompt.verbalizer.labels, scores.tolist(), strict=True)), abs=1e-4
        )


def test_no_row_of_the_data_is_in_the_blob(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt()
    blob = store.read_blob(store.get_version("mood", 1).digest)
    assert not any(row["text"].encode() in blob for row in mood_rows())


def test_template_that_ends_with_the_text_is_learned_and_calibrated(
    attempt: Callable[..., Job], store: PromptStore
) -> None:
    assert attempt(template="<prompt:4>{text}").status == "succeeded"
    (card,) = store.get_version("mood", 1).card
    assert card.calibration is not None


def test_free_text_is_learned_judged_and_replayable(
    attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    rows = [{"input": f"number {n}", "output": "a long and plain answer"} for n in range(16)]
    job = attempt(task="echo", training_data={"inline": rows})
    assert job.status == "succeeded"
    (card,) = store.get_version("echo", 1).card
    assert (card.metric, set(card.baselines), card.calibration) == ("rouge_l", {"zero_shot"}, None)
    prompt = loaded(store, backbone, task="echo")
    golden = prompt.golden[0]
    row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, golden.input)
    (found,) = generate_greedy(backbone, [row], [prompt.vectors], max_tokens=8)
    assert (golden.tokens, golden.scores) == (found.tokens, None)
    assert golden.margins == pytest.approx(found.margins, abs=1e-3)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([{"prompt": f"Q{n}:", "completion": " yes"} for n in range(6)], id="completions"),
        pytest.param(
            [
                {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "yes"}]}
                for n in range(6)
            ],
            id="messages",
        ),
    ],
)
def test_other_forms_of_rows_train_too(attempt: Callable[..., Job], rows: list[dict[str, Any]]) -> None:
    assert attempt(task="forms", training_data={"inline": rows}).status == "succeeded"


def test_version_never_to_be_published_is_a_candidate(attempt: Callable[..., Job], store: PromptStore) -> None:
    job = attempt(publish={"when": "never"})
    assert job.result is not None
    assert (job.status, job.result.promoted) == ("succeeded", False)
    assert store.get_version("mood", 1).state == "candidate"
    assert store.list_aliases("mood") == []


def test_version_goes_to_the_alias_asked_for(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt()
    attempt(publish={"when": "always", "alias": "canary"})
    assert store.get_alias("mood", "prod").version == 1
    assert store.get_alias("mood", "canary").version == 2


def test_task_that_changed_meanwhile_is_a_conflict(
    attempt: Callable[..., Job], store: PromptStore, context: Context, jobs: JobStore
) -> None:
    job, _ = jobs.submit(short_request())
    store.put_task("mood", TaskSpec(fields=("text",), labels=("cold", "warm")))
    with pytest.raises(Conflict, match="changed while the job ran"):
        Session(context, job.id, context.records.claim(job.id, "here")).run()


def test_cancel_before_publishing_stops_the_attempt_and_publishes_nothing(
    context: Context, jobs: JobStore, store: PromptStore
) -> None:
    job, _ = jobs.submit(short_request())
    number = context.records.claim(job.id, "here")
    jobs.cancel(job.id)
    with pytest.raises(Interrupted):
        Session(context, job.id, number).run()
    assert store.find_publication(job.id) is None


def test_attempt_that_was_overtaken_publishes_nothing(
    context: Context, jobs: JobStore, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = jobs.submit(short_request())
    number = context.records.claim(job.id, "here")
    context.records.take_back(job.id, attempt=number, reason="thought dead")
    newer = context.records.claim(job.id, "elsewhere")
    with pytest.raises((Lost, Interrupted)):
        Session(context, job.id, number).run()
    assert store.find_publication(job.id) is None
    context.stop.clear()  # it was told that the claim is lost; the other attempt has a process of its own
    Session(context, job.id, newer).run()
    assert jobs.get(job.id).status == "succeeded"
    assert len(store.list_versions("mood")[0]) == 1


def test_publish_whose_answer_was_lost_is_made_once(
    attempt: Callable[..., Job], store: PromptStore, answers_lost: Callable[[str, int], None]
) -> None:
    answers_lost("publish", 2)
    job = attempt()
    assert (job.status, job.result and job.result.version) == ("succeeded", 1)
    assert len(store.list_versions("mood")[0]) == 1


def test_store_away_for_too_long_leaves_the_job_to_a_later_attempt(
    attempt: Callable[..., Job], store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(**_: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "publish", publish)
    monkeypatch.setattr(session, "PATIENCE_S", 0.01)
    monkeypatch.setattr(session, "RETRY_S", 0.01)
    with pytest.raises(Interrupted):
        attempt()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), "storage_full"),
        (OSError(5, "Input/output error"), "storage_failed"),
        (torch.OutOfMemoryError("CUDA out of memory at 0x7f"), "out_of_memory"),
        (Conflict("the task changed"), "conflict"),
        (ValueError("secret path /srv/x"), "internal_error"),
    ],
)
def test_failed_attempt_ends_the_job_with_a_code_and_no_inner_detail(
    context: Context, jobs: JobStore, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    job, _ = jobs.submit(short_request())
    monkeypatch.setattr(Session, "run", fail)
    monkeypatch.setattr(run, "_context", lambda *_: context)
    number = context.records.claim(job.id, "here")
    settings = Settings.model_validate({"redis_url": "unix:///nothing"})
    assert run.train(settings, context.records, job.id, number, threading.Event()) == run.ENDED
    ended = jobs.get(job.id)
    assert (ended.status, ended.error and ended.error.code) == ("failed", code)
    assert ended.error is not None
    assert "secret" not in ended.error.message
    assert "0x7f" not in ended.error.message


def test_log_of_a_failed_attempt_does_not_quote_the_data(
    context: Context, jobs: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise InvalidDataset("the label 'zebra7' is not one of the task's", row=3)

    job, _ = jobs.submit(short_request())
    monkeypatch.setattr(Session, "run", fail)
    monkeypatch.setattr(run, "_context", lambda *_: context)
    number = context.records.claim(job.id, "here")
    settings = Settings.model_validate({"redis_url": "unix:///nothing"})
    run.train(settings, context.records, job.id, number, threading.Event())
    (line,) = [record for record in caplog.records if job.id in record.getMessage()]
    assert (line.getMessage(), vars(line)["row"]) == (f"{job.id}: failed: invalid_dataset", 3)
    assert "zebra7" not in caplog.text
    ended = jobs.get(job.id).error
    assert ended is not None
    assert "zebra7" in ended.message  # for whoever submitted it


def test_interrupted_attempt_resumes_from_its_checkpoint(context: Context, jobs: JobStore, tmp_path: Path) -> None:
    job, _ = jobs.submit(short_request(steps=6))
    context.stop.set()
    with pytest.raises(Interrupted):
        Session(context, job.id, context.records.claim(job.id, "here")).run()
    assert list(job_folder(tmp_path, job.id).glob("step-00000001.*"))
    assert context.records.move(job.id, "queued", attempt=1) == "moved"
    context.stop.clear()
    Session(context, job.id, context.records.claim(job.id, "here")).run()
    ended = jobs.get(job.id)
    assert (ended.status, ended.attempt) == ("succeeded", 2)
    second = [event.message for event in jobs.events(job.id)]
    assert second.count("running") == 2
