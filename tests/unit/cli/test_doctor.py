"""Promises of `chorus doctor` and `chorus fsck`."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
import torch

from app.backbone.native import build
from app.cli.checks import machine, model
from app.cli.checks import redis as redis_checks
from app.cli.commands import doctor
from app.cli.errors import Exit
from app.settings import Settings
from app.supervisor import EmbeddedServer
from tests.unit.cli.conftest import Ran


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0)


def test_check_data_dir_when_it_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = machine.check_data_dir(Settings(data_dir=tmp_path / "file" / "data"))
    assert check.state == "fail"
    assert "CHORUS_DATA_DIR" in (check.fix or "")


def test_check_port_when_another_program_has_it_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check = machine.check_port(Settings(port=taken.getsockname()[1]))
    assert check.state == "fail"
    assert "--port" in (check.fix or "")


def test_check_redis_when_none_is_configured_tries_the_embedded_one(settings: Settings) -> None:
    (check,) = redis_checks.check_redis(settings)
    assert check.state == "ok"
    assert "embedded server 9." in check.found


def test_check_redis_when_it_forgets_or_evicts_says_so(settings: Settings, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        checks = redis_checks.check_redis(settings.model_copy(update={"redis_url": server.url}))
    assert [check.state for check in checks] == ["ok", "warn", "fail"]


def test_check_redis_when_nothing_answers_hides_the_password(settings: Settings) -> None:
    url = "redis://user:secret@127.0.0.1:1/0"
    (check,) = redis_checks.check_redis(settings.model_copy(update={"redis_url": url}))
    assert check.state == "fail"
    assert "secret" not in check.found


def test_check_model_when_it_is_not_there_names_the_setting(settings: Settings, tmp_path: Path) -> None:
    (check,) = model.check_model(settings.model_copy(update={"model": str(tmp_path / "absent")}))
    assert check.state == "fail"
    assert "CHORUS_MODEL" in (check.fix or "")


def test_check_model_for_the_bundled_one_adds_up_the_memory(settings: Settings) -> None:
    checks = {check.name: check for check in model.check_model(settings)}
    assert checks["model"].state == "ok"
    compiled = build.load(torch.float32) is not None  # where a compiler is
    assert checks["runner"].state == ("ok" if compiled else "warn")
    assert "weights" in checks["memory"].found
    assert len(checks["fingerprint"].found) >= 32


def test_check_model_without_a_compiler_warns_and_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")  # the only one with compiled steps
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.load.cache_clear()
    try:
        check = next(check for check in model.check_model(settings) if check.name == "runner")
    finally:
        build.load.cache_clear()
    assert check.state == "warn"
    assert "plain torch" in check.found
    assert "gcc" in (check.fix or "")


def test_check_torch_when_a_gpu_is_asked_for_and_absent_fails(settings: Settings) -> None:
    torch = pytest.importorskip("torch")
    wanted = settings.model_copy(update={"device": "cuda"})
    assert model.check_torch(wanted).state == ("ok" if torch.cuda.is_available() else "fail")


def test_doctor_when_a_check_fails_exits_with_failure_and_shows_the_fix(
    chorus: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = doctor.Check("disk", "fail", "full", "make room")
    monkeypatch.setattr(doctor, "_examine", lambda _settings: iter([failing]))
    plain, as_json = chorus("doctor"), chorus("doctor", "--json")
    assert plain.code == as_json.code == Exit.FAILED
    assert "fix: make room" in plain.out
    assert as_json.json["checks"] == [{"name": "disk", "state": "fail", "found": "full", "fix": "make room"}]


def test_fsck_without_a_running_service_starts_a_server_of_its_own(chorus: Callable[..., Ran], tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    ran = chorus("fsck", "--data-dir", str(data_dir))
    assert ran.code == Exit.DONE, ran.err
    assert "0 tasks, 0 versions, 0 blobs, epoch" in ran.out


def test_fsck_when_the_registry_lost_its_records_says_so_and_rebuilds(
    chorus: Callable[..., Ran], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    with EmbeddedServer(data_dir / "redis") as server:
        publish_one(server.url, data_dir / "blobs")
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        broken = chorus("fsck", "--data-dir", str(data_dir))
        mended = chorus("fsck", "--rebuild", "--data-dir", str(data_dir), "--json")
        whole = chorus("fsck", "--data-dir", str(data_dir))
    assert broken.code == Exit.FAILED
    assert "chorus fsck --rebuild" in broken.err
    assert mended.code == whole.code == Exit.DONE
    assert mended.json["versions"] == 1


def test_fsck_when_there_is_no_data_folder_says_so(chorus: Callable[..., Ran], tmp_path: Path) -> None:
    ran = chorus("fsck", "--data-dir", str(tmp_path / "absent"))
    assert ran.code == Exit.USAGE
    assert not (tmp_path / "absent").exists()


def publish_one(url: str, blobs: Path) -> None:
    from prompt_store import PromptStore
    from prompt_store.models import BackboneRef, PromptMeta, TaskSpec

    backbone = BackboneRef(name="tiny", fingerprint="f" * 64, hidden_size=4)
    meta = PromptMeta(
        task="tickets",
        template="<prompt:2>{text}",
        bos="none",
        method={"type": "hard"},
        backbone=backbone,
        num_virtual_tokens=2,
    )
    store = PromptStore.open(url, blobs)
    store.publish(
        task="tickets",
        meta=meta,
        tensors={"prompt": np.ones((2, 4), np.float32)},
        publication="one",
        alias_revision=None,
        spec=TaskSpec(fields=("text",)),
    )
    store.close()
