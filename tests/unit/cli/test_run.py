"""Promises of every command line: help, exit codes, errors without tracebacks."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import redis

from app.cli.commands import service as service_commands
from app.cli.errors import Exit
from app.errors import UnsupportedBackbone
from prompt_store import keys
from tests.unit.cli.conftest import FakeService, Ran


def test_help_names_every_command(chorus: Callable[..., Ran]) -> None:
    ran = chorus("--help")
    assert ran.code == Exit.DONE
    for name in ["up", "serve", "worker", "train", "jobs", "generate", "tasks", "versions", "alias", "doctor", "fsck"]:
        assert f" {name} " in ran.out


def test_version_is_the_installed_one(chorus: Callable[..., Ran]) -> None:
    assert chorus("--version").out == f"chorus {version('chorus-serve')}\n"


@pytest.mark.parametrize(
    "argv",
    [["nonsense"], ["generate"], ["tasks", "--nonsense"], ["generate", "t", "x", "--seed", "-1"], ["jobs", "--watch"]],
)
def test_run_when_the_command_line_is_wrong_exits_with_usage(chorus: Callable[..., Ran], argv: list[str]) -> None:
    ran = chorus(*argv)
    assert ran.code == Exit.USAGE
    assert "Traceback" not in ran.err


def test_run_when_nothing_listens_says_how_to_start_it(chorus: Callable[..., Ran]) -> None:
    ran = chorus("tasks", "--url", "http://127.0.0.1:1")
    assert ran.code == Exit.UNREACHABLE
    assert "nothing answers at http://127.0.0.1:1" in ran.err
    assert "chorus up" in ran.err


def test_run_when_the_service_refuses_shows_code_message_and_param(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    service.refuse("GET /v1/tasks", 401, "unauthorized", "send the key")
    ran = chorus("tasks")
    assert ran.code == Exit.REFUSED
    for part in ("send the key", "unauthorized", "input", "req-1", "--key"):
        assert part in ran.err


@pytest.mark.parametrize(
    ("status", "code"), [(422, Exit.REFUSED), (409, Exit.REFUSED), (429, Exit.UNREACHABLE), (503, 3), (500, 3)]
)
def test_exit_code_follows_the_status(chorus: Callable[..., Ran], service: FakeService, status: int, code: int) -> None:
    service.refuse("GET /v1/tasks", status, "any")
    assert chorus("tasks").code == code


def test_run_when_json_is_wanted_errors_are_json_too(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.refuse("GET /v1/tasks", 429, "overloaded", "full", retry_after="7")
    ran = chorus("tasks", "--json")
    assert ran.json["error"]["code"] == "overloaded"
    assert "7 s" in ran.json["error"]["fix"]
    assert ran.err == ""


def test_run_when_the_answer_is_not_ours_says_so(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks", b"<html>hello</html>", status=200)
    ran = chorus("tasks")
    assert ran.code == Exit.UNREACHABLE
    assert "not as Chorus does" in ran.err


def test_run_when_something_breaks_shows_a_traceback_only_with_debug(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    service.on("GET /v1/tasks", {"data": [{"no": "name"}], "has_more": False})
    quiet, loud = chorus("tasks"), chorus("tasks", "--debug")
    assert quiet.code == loud.code == Exit.FAILED
    assert "Traceback" not in quiet.err
    assert "--debug" in quiet.err
    assert "Traceback" in loud.err


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "nonsense"])
def test_run_when_the_url_is_no_url_exits_with_usage(chorus: Callable[..., Ran], url: str) -> None:
    assert chorus("tasks", "--url", url).code == Exit.USAGE


@pytest.mark.parametrize("url", ["http://localhost:abc", "http://[::1", "http://localhost:99999", "http://\udcff"])
def test_run_when_the_url_cannot_be_read_says_what_one_looks_like(chorus: Callable[..., Ran], url: str) -> None:
    ran = chorus("tasks", "--url", url)
    assert ran.code == Exit.USAGE
    assert "http://127.0.0.1:8000" in ran.err
    assert "CHORUS_URL" in ran.err


def test_fsck_when_a_record_cannot_be_read_names_it(
    chorus: Callable[..., Ran], redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORUS_REDIS_URL", redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.hset(keys.TASKS, "mood", "x")
        ran = chorus("fsck", "--data-dir", str(tmp_path))
        client.flushall()
    assert ran.code == Exit.FAILED
    assert "the task mood" in ran.err


def test_key_is_sent_as_bearer_and_never_shown(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.refuse("GET /v1/tasks", 401, "unauthorized")
    ran = chorus("tasks", "--key", "secret-key-0123456789")
    assert service.asked[-1].headers["authorization"] == "Bearer secret-key-0123456789"
    assert "secret-key" not in ran.out + ran.err


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from app.cli import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'httpx', 'redis', 'fastapi', 'pydantic_settings', 'prompt_store'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0


@pytest.mark.parametrize(("param", "code"), [("model", Exit.USAGE), (None, Exit.FAILED)])
def test_run_when_the_service_itself_cannot_work_says_so_without_a_traceback(
    chorus: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, param: str | None, code: Exit
) -> None:
    def refuse(**_: object) -> None:
        raise UnsupportedBackbone("this model is refused", param=param)

    monkeypatch.setattr(service_commands, "load_settings", refuse)
    ran = chorus("serve")
    assert ran.code == code
    assert "this model is refused" in ran.err
    assert "Traceback" not in ran.err
