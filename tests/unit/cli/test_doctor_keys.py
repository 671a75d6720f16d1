"""`chorus doctor` tells keys that open nothing, cannot be read, or are missing where others reach the service."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from app.access import Keyring, key_stores, pepper_of
from app.cli.checks import Check, human_days, keys, objects
from app.settings import Settings
from prompt_store import ObjectStore, StoreUnavailable

DAY_S = 86_400.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0)


def make(settings: Settings, **options: float | None) -> str:
    stores = key_stores(settings)
    made = Keyring(stores, pepper_of(settings)).create(stores[-1], ["admin"], **options)
    for store in stores:
        store.close()
    return str(made.record.id)


def check(settings: Settings, **options: float) -> Check:
    return keys.check_keys(settings, **options)[0]


def test_check_keys_on_loopback_without_a_key_says_who_may_use_it(settings: Settings) -> None:
    assert check(settings).state == "ok"
    assert "this machine" in check(settings).found


def test_check_keys_beyond_loopback_without_a_key_fails_with_the_command(settings: Settings) -> None:
    found = check(settings.model_copy(update={"host": "0.0.0.0"}))
    assert found.state == "fail"
    assert "chorus keys create" in (found.fix or "")


def test_check_keys_beyond_loopback_with_a_key_is_content(settings: Settings) -> None:
    make(settings)
    open_wide = settings.model_copy(update={"host": "0.0.0.0"})
    assert check(open_wide) == Check("keys", "ok", "1 of 1 active")
    with_setting = Settings(data_dir=settings.data_dir / "other", host="0.0.0.0", api_key="k" * 16)
    assert check(with_setting).state == "ok"


def test_check_keys_when_the_setting_is_short_fails_and_does_not_show_it(settings: Settings) -> None:
    found = check(settings.model_copy(update={"api_key": "secret-but-no"}))
    assert found.state == "fail"
    assert "secret-but-no" not in f"{found}"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_check_keys_when_all_have_expired_fails(settings: Settings, host: str) -> None:
    make(settings, lifetime_s=DAY_S)
    found = keys.check_keys(settings.model_copy(update={"host": host}), now=time.time() + 2 * DAY_S)[0]
    assert (found.state, found.found) == ("fail", "all 1 are expired: nobody may call")


def test_check_keys_when_the_last_ends_soon_warns(settings: Settings) -> None:
    make(settings, lifetime_s=2.5 * DAY_S)
    found = check(settings)
    assert found.state == "warn"
    assert "ends in 2 days" in found.found
    make(settings)
    assert check(settings).state == "ok"


@pytest.mark.parametrize("text", [b"not json", b"{}", b""])
def test_check_keys_when_the_file_is_damaged_fails(settings: Settings, text: bytes) -> None:
    make(settings)
    (settings.data_dir / "keys" / "keys.json").write_bytes(text)
    found = check(settings)
    assert (found.name, found.state) == ("keys: file", "fail")


def test_check_keys_when_the_file_cannot_be_read_fails(settings: Settings) -> None:
    (settings.data_dir / "keys" / "keys.json").mkdir(parents=True)
    assert check(settings).state == "fail"


def test_check_keys_under_another_pepper_fails(settings: Settings) -> None:
    make(settings)
    found = check(settings.model_copy(update={"key_pepper": "x" * 32}))
    assert found.state == "fail"
    assert "pepper" in found.found
    (settings.data_dir / "keys" / "pepper").unlink()
    assert check(settings).state == "fail"


def test_check_keys_when_others_may_read_the_pepper_warns(settings: Settings) -> None:
    make(settings)
    assert [one.state for one in keys.check_keys(settings)] == ["ok"]
    (settings.data_dir / "keys" / "pepper").chmod(0o644)
    assert [(one.name, one.state) for one in keys.check_keys(settings)] == [("keys", "ok"), ("keys: pepper", "warn")]


def test_check_keys_in_redis_counts_them_and_only_warns_when_it_is_away(settings: Settings, redis_url: str) -> None:
    there = settings.model_copy(update={"redis_url": redis_url})
    make(there)
    assert check(there).found == "1 of 1 active"
    make(settings)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    assert [(one.name, one.state) for one in keys.check_keys(away)] == [("keys", "ok"), ("keys: redis", "warn")]


def test_check_objects_writes_reads_and_cleans_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert objects.check_objects(settings) == []
    there = settings.model_copy(update={"blobs_url": "memory://doctor"})
    assert [one.state for one in objects.check_objects(there)] == ["ok"]
    assert ObjectStore("memory://doctor").names("doctor") == []

    def refuse(*_: object) -> None:
        raise StoreUnavailable("object store: PermissionError")

    monkeypatch.setattr(ObjectStore, "put", refuse)
    (found,) = objects.check_objects(there)
    assert found.state == "fail"
    assert "AWS_" in (found.fix or "")


def test_settings_refuse_a_place_for_blobs_that_is_none() -> None:
    with pytest.raises(ValueError, match="not of the form"):
        Settings(blobs_url="http://example.com/blobs")


@pytest.mark.parametrize(("seconds", "text"), [(3 * DAY_S, "3 days"), (DAY_S, "1 day"), (7200, "2 hours")])
def test_human_days_rounds_down(seconds: float, text: str) -> None:
    assert human_days(seconds) == text
