"""`chorus keys`: the secret is shown once, mistakes are named, both places work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from annotated_types import Le

from app.access.keys import KeyLimits
from app.cli import main
from app.cli.errors import Exit

Run = Callable[..., tuple[int, str, str]]
KEY = re.compile(r"ck_[0-9a-f]{12}_[0-9a-f]{64}")


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("CHORUS_REDIS_URL", raising=False)
    monkeypatch.setenv("CHORUS_DATA_DIR", str(tmp_path))

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["keys", *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def made(keys: Run, *options: str) -> Any:
    code, out, err = keys("create", "--json", *options)
    assert code == Exit.DONE, err
    return json.loads(out)


def test_created_key_is_printed_alone_and_never_again(keys: Run) -> None:
    code, out, err = keys("create", "--scope", "generate", "--name", "web")
    assert code == Exit.DONE
    assert KEY.fullmatch(out.strip())
    assert out.strip() not in err
    for again in (keys("list"), keys("list", "--json")):
        assert "web" in again[1]
        assert not KEY.search(again[1] + again[2])
        assert "digest" not in again[1]


def test_options_become_scopes_limits_and_expiry(keys: Run) -> None:
    one = made(
        *(keys, "--scope", "train,generate", "--expires-in", "90d", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "9000", "--concurrent-jobs", "2", "--total-jobs", "10"),
    )
    assert one["scopes"] == ["generate", "train"]
    assert one["expires_at"] - one["created_at"] == 90 * 86_400
    wanted = {"requests_per_minute": 60, "tokens_per_minute": 9000, "concurrent_jobs": 2, "total_jobs": 10}
    assert one["limits"] == wanted
    assert "60 req/min, 9000 tok/min, 2 jobs at once, 10 jobs" in keys("list")[1]


def test_rotate_and_revoke_change_the_list(keys: Run) -> None:
    one = made(keys, "--scope", "admin")
    code, out, _ = keys("rotate", one["id"], "--overlap", "1h", "--json")
    turned = json.loads(out)
    assert code == Exit.DONE
    assert turned["key"] != one["key"]
    assert turned["old_secret_until"] is not None
    assert keys("revoke", one["id"])[0] == Exit.DONE
    (found,) = json.loads(keys("list", "--json")[1])["data"]
    assert (found["state"], found["old_secret_until"], found["place"]) == ("revoked", None, "file")
    code, out, _ = keys("rotate", one["id"], "--json")
    assert (code, json.loads(out)["error"]["code"]) == (Exit.REFUSED, "refused")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["create"], Exit.USAGE),
        (["create", "--scope", "everything"], Exit.USAGE),
        (["create", "--scope", "admin", "--expires-in", "soon"], Exit.USAGE),
        (["create", "--scope", "admin", "--requests-per-minute", "0"], Exit.USAGE),
        (["create", "--scope", "admin", "--name", "x" * 81], Exit.USAGE),
        (["revoke", "0" * 12], Exit.REFUSED),
        (["rotate", "0" * 12], Exit.REFUSED),
    ],
)
def test_mistake_is_named_and_makes_nothing(keys: Run, argv: list[str], status: Exit) -> None:
    code, _, _ = keys(*argv)
    assert code == status
    assert json.loads(keys("list", "--json")[1])["data"] == []


@pytest.mark.parametrize("name", KeyLimits.model_fields)
def test_limit_that_no_key_may_have_is_refused_with_the_bounds(keys: Run, name: str) -> None:
    (most,) = (bound.le for bound in KeyLimits.model_fields[name].metadata if isinstance(bound, Le))
    option = f"--{name.replace('_', '-')}"
    code, _, err = keys("create", "--scope", "generate", option, str(most + 1))
    assert code == Exit.USAGE
    assert option in err
    assert str(most) in err
    assert made(keys, "--scope", "generate", option, str(most))["limits"][name] == most


def test_redis_of_the_settings_is_the_place_unless_a_folder_is_named(
    keys: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHORUS_REDIS_URL", redis_url)
    assert made(keys, "--scope", "generate")["place"] == "redis"
    assert made(keys, "--scope", "train", "--data-dir", str(tmp_path))["place"] == "file"
    assert {one["place"] for one in json.loads(keys("list", "--json")[1])["data"]} == {"redis", "file"}
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()


def test_redis_that_is_away_is_said_with_what_to_do(keys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_REDIS_URL", "redis://:hidden@127.0.0.1:1")
    code, _, err = keys("create", "--scope", "generate")
    assert code == Exit.UNREACHABLE
    assert "--data-dir" in err
    assert "hidden" not in err
