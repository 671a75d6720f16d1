"""`chorus bench` against live services: one around fakes, which fails as it is told, and one with a real engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.cli import main
from app.cli.errors import Exit
from app.main import create_app
from app.settings import Settings
from prompt_store import BlobStore, Decoding, MemoryMetadata, PromptMeta, PromptStore, TaskSpec
from tests.architectures import build_backbone
from tests.fakes import World, make_world
from tests.live import serving

KEY = "k" * 32
Bench = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url, api_key=KEY)


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    with serving(world.app) as live:
        yield live.url


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run `chorus bench --json` and return its exit status and document."""

    def run(url: str, *options: str, key: str = KEY) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(["bench", "--url", url, "--key", key, "--warm-up", "0", "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_load_of_all_tasks_answers_every_request_and_times_streams(bench: Bench, url: str, world: World) -> None:
    before = len(world.engine.asked)
    code, found = bench(url, "--requests", "60", "--clients", "4", "--words", "7")
    assert code == Exit.DONE
    assert found["requests"]["sent"] == found["requests"]["answered"] == found["rows"]["answered"] == 60
    assert len(world.engine.asked) - before == 60 + 3  # each of the three tasks is tried once before
    rows = {one["task"]: one["rows"] for one in found["tasks"]}
    assert set(rows) == {"echo", "sentiment", "nli"}
    assert found["generated_tokens"]["total"] == 7 * rows["echo"]
    assert found["latency_s"]["first_token"]["n"] == rows["echo"]
    assert found["latency_s"]["inter_token"]["n"] == 7 * rows["echo"]  # seven words and an end, so seven gaps
    assert found["service"]["rows_answered"] == 60
    assert found["other_rows"] == 0
    assert found["backbone"]["name"] == "fake-1m"


def test_open_load_of_mixed_requests_sends_them_all(bench: Bench, url: str) -> None:
    code, found = bench(url, "--requests", "20", "--rate", "200", "--rows", "5", "--task", "echo", "--task", "nli=2")
    assert code == Exit.DONE
    assert (found["load"]["clients"], found["load"]["rate_per_s"], found["load"]["stream"]) == (None, 200.0, False)
    assert found["rows"] == {"sent": 100, "answered": 100, "per_s": pytest.approx(100 / found["elapsed_s"])}


def test_rows_of_a_file_are_asked_and_refusals_counted_with_retry_after_obeyed(
    bench: Bench, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    texts = ["fine", "!overloaded", "!long"]
    file.write_text("\n".join(json.dumps({"text": text, "label": "x"}) for text in texts))
    options = ["--task", "echo", "--data", str(file), "--clients", "6", "--duration", "0.6", "--no-stream"]
    code, found = bench(url, *options, "--seed", "3")
    assert code == Exit.DONE
    assert set(found["errors"]) == {"overloaded", "context_too_long"}
    again = found["retry_after"]
    assert again["asked"] == again["obeyed"] == found["errors"]["overloaded"] == 6  # each client, until the end
    assert 0 < again["waited_s"] < 6 * 0.6


def test_service_that_answers_nothing_is_a_failure_with_its_figures(bench: Bench, url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n!failure,x\n")
    code, found = bench(url, "--task", "echo", "--data", str(file), "--requests", "3")
    assert code == Exit.FAILED
    assert found["errors"] == {"engine_failure": 3}
    assert found["latency_s"]["end_to_end"] is None


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--task", "nothing"], Exit.REFUSED, "no task 'nothing'"),
        (["--task", "echo@9"], Exit.REFUSED, "version 9"),
        (["--data", "/nowhere/rows.jsonl"], Exit.USAGE, "cannot read"),
        (["--clients", "2", "--rate", "2"], Exit.USAGE, "give one of them"),
        (["--rows", "2", "--stream"], Exit.USAGE, "one row"),
    ],
)
def test_mistake_is_named_before_any_load(
    bench: Bench, url: str, options: list[str], status: Exit, message: str
) -> None:
    code, found = bench(url, *options)
    assert code == status
    assert message in found["error"]["message"]


def test_file_without_a_field_that_a_task_reads_is_refused(bench: Bench, url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"premise": "a", "label": "x"}\n')
    code, found = bench(url, "--task", "nli", "--data", str(file))
    assert code == Exit.USAGE
    assert "row 1 has no text in the field `hypothesis`, which nli reads" in found["error"]["message"]


def test_wrong_key_and_silent_address_say_what_to_set(bench: Bench, url: str) -> None:
    code, found = bench(url, key="wrong" * 8)
    assert (code, found["error"]["fix"]) == (Exit.REFUSED, "set --key or CHORUS_API_KEY")
    code, found = bench("http://127.0.0.1:1")
    assert code == Exit.UNREACHABLE
    assert "chorus up" in found["error"]["fix"]


def test_report_for_people_has_no_live_line_where_nobody_watches(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", url, "--key", KEY, "--warm-up", "0", "--requests", "5"]) == Exit.DONE
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("fake-1m, float32 on cpu, at http://127.0.0.1:")
    assert "THROUGHPUT" in captured.out
    assert "measuring" not in captured.out + captured.err
    assert "\x1b" not in captured.out + captured.err


def test_figures_of_a_real_engine_agree_with_what_was_asked(bench: Bench, tmp_path: Path, redis_url: str) -> None:
    backbone = build_backbone("llama")
    store = PromptStore(MemoryMetadata(), BlobStore(tmp_path / "blobs"))
    for seed in range(3):
        _publish_prompt(store, backbone, f"task-{seed}", seed)
    settings = Settings(data_dir=tmp_path, redis_url=redis_url, starters=False, max_rows=8, max_context=128, threads=1)
    with serving(create_app(settings, store=store, backbone=backbone)) as live:
        code, found = bench(live.url, "--requests", "40", "--clients", "8", "--words", "4", "--max-tokens", "6")
    assert code == Exit.DONE
    assert found["requests"]["answered"] == 40
    service, tokens = found["service"], found["generated_tokens"]["total"]
    assert service["rows_answered"] == 40
    assert service["prefill"]["rows_per_step"] * service["prefill"]["steps"] == pytest.approx(40)
    # a row's first token comes from its prefill, and an end token is decoded but not counted as text
    decoded = service["decode"]["rows_per_step"] * service["decode"]["steps"]
    assert tokens - 40 <= decoded <= tokens + 40
    assert 1 <= service["decode"]["prompts_per_step"] <= 3
    assert service["decode"]["prompts_per_step"] <= service["decode"]["rows_per_step"] <= 8
    assert service["prefix_cache_hit_rate"] == 1.0  # each task was tried once before
    assert 0 <= service["padding_share"] < 1
    assert service["queue_time_mean_s"] > 0


def _publish_prompt(store: PromptStore, backbone: Any, task: str, seed: int) -> None:
    """A task of free text with five random vectors in front."""
    meta = PromptMeta(
        task=task,
        template="<prompt:5>{text}",
        bos="none",
        method={"type": "prompt_tuning"},
        backbone=backbone.ref,
        num_virtual_tokens=5,
        decoding=Decoding(max_tokens=16),
    )
    vectors = np.random.default_rng(seed).normal(size=(5, backbone.hidden_size)).astype(np.float32)
    store.publish(
        task=task,
        meta=meta,
        tensors={"prompt": vectors * np.float32(backbone.embedding_rms)},
        publication=f"bench-{seed}",
        alias="prod",
        spec=TaskSpec(fields=("text",)),
    )
