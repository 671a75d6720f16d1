"""Keys in a file and in Redis: the same promises, and no secret in either."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from app.access import Directory, KeyLimits, KeyRefused, Keyring, KeyStore, KeysUnavailable
from app.access.file_store import FileKeys
from app.access.keys import digest_of
from app.access.pepper import Pepper
from app.access.redis_store import RECORDS, RedisKeys


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], KeyStore]]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    opened: list[KeyStore] = []

    def open_one() -> KeyStore:
        opened.append(RedisKeys(url) if url else FileKeys(tmp_path / "keys" / "keys.json"))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
    if url:
        with redis.Redis.from_url(url) as client:
            client.flushall()


@pytest.fixture
def store(open_store: Callable[[], KeyStore]) -> KeyStore:
    return open_store()


@pytest.fixture
def pepper(tmp_path: Path) -> Pepper:
    return Pepper(None, tmp_path / "keys" / "pepper")


@pytest.fixture
def ring(store: KeyStore, pepper: Pepper, clock: Clock) -> Keyring:
    return Keyring([store], pepper, now=clock)


@pytest.fixture
def directory(open_store: Callable[[], KeyStore], pepper: Pepper, clock: Clock) -> Directory:
    return Directory([open_store()], pepper, now=clock)


def test_key_opens_once_the_directory_has_looked_again(ring: Keyring, store: KeyStore, directory: Directory) -> None:
    assert not directory.has_keys
    made = ring.create(store, ["generate"], name="web", limits=KeyLimits(requests_per_minute=5))
    directory.refresh()
    caller = directory.authenticate(made.secret)
    assert caller is not None
    assert (caller.id, caller.scopes, caller.limits.requests_per_minute) == (made.record.id, {"generate"}, 5)
    assert directory.has_keys


def test_anything_but_the_whole_secret_opens_nothing(ring: Keyring, store: KeyStore, directory: Directory) -> None:
    made = ring.create(store, ["admin"])
    directory.refresh()
    wrong = "0" * 64
    last = "0" if made.secret[-1] != "0" else "1"
    tries = [made.secret.upper(), made.secret[:-1] + last, made.secret[:-1], made.secret + "0", made.record.digest]
    tries += [f"ck_{made.record.id}_{wrong}", f"ck_{'0' * 12}_{wrong}", f"ck_{made.record.id}_{made.record.digest}"]
    tries += ["", "ck_", " " + made.secret, made.secret + "\n", "\udcff"]
    assert [one for one in tries if directory.authenticate(one) is not None] == []


def test_places_hold_no_secret(ring: Keyring, store: KeyStore, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made = ring.create(store, ["train"])
    turned = ring.rotate(made.record.id, overlap_s=60)
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    if isinstance(store, RedisKeys):
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            kept += b"".join(client.hgetall(RECORDS).values())
    assert made.record.id.encode() in kept
    for secret in (made.secret, turned.secret):
        assert secret.rpartition("_")[2].encode() not in kept


def test_expiry_needs_no_look(ring: Keyring, store: KeyStore, directory: Directory, clock: Clock) -> None:
    made = ring.create(store, ["generate"], lifetime_s=60)
    directory.refresh()
    clock.now += 59.9
    assert directory.authenticate(made.secret)
    clock.now += 0.1
    assert directory.authenticate(made.secret) is None


def test_rotation_lets_the_old_secret_live_for_the_overlap_alone(
    ring: Keyring, store: KeyStore, directory: Directory, clock: Clock
) -> None:
    first = ring.create(store, ["generate", "train"])
    second = ring.rotate(first.record.id, overlap_s=100)
    directory.refresh()
    assert directory.authenticate(first.secret) == directory.authenticate(second.secret) != None  # noqa: E711
    clock.now += 100
    assert directory.authenticate(first.secret) is None
    third = ring.rotate(first.record.id, overlap_s=0)
    directory.refresh()
    assert [directory.authenticate(one.secret) is not None for one in (first, second, third)] == [False, False, True]


def test_second_rotation_within_the_overlap_ends_the_oldest_secret(
    ring: Keyring, store: KeyStore, directory: Directory
) -> None:
    first = ring.create(store, ["generate"])
    second = ring.rotate(first.record.id, overlap_s=100)
    third = ring.rotate(first.record.id, overlap_s=100)
    directory.refresh()
    assert [directory.authenticate(one.secret) is not None for one in (first, second, third)] == [False, True, True]


def test_revoked_key_opens_nothing_and_keeps_the_service_locked(
    ring: Keyring, store: KeyStore, directory: Directory, open_store: Callable[[], KeyStore], pepper: Pepper
) -> None:
    made = ring.create(store, ["generate"])
    turned = ring.rotate(made.record.id, overlap_s=1000)
    directory.refresh()
    ring.revoke(made.record.id)
    revoked_at = ring.revoke(made.record.id).revoked_at
    directory.refresh()
    assert directory.authenticate(made.secret) is directory.authenticate(turned.secret) is None
    again = Directory([open_store()], pepper)
    again.refresh()
    assert again.has_keys
    assert [record.revoked_at for _, record in ring.list()] == [revoked_at]
    with pytest.raises(KeyRefused, match="revoked"):
        ring.rotate(made.record.id, overlap_s=0)


def test_unknown_key_cannot_be_revoked_or_rotated(ring: Keyring) -> None:
    with pytest.raises(KeyRefused, match="no key"):
        ring.revoke("0" * 12)
    with pytest.raises(KeyRefused, match="no key"):
        ring.rotate("0" * 12, overlap_s=0)


def test_changes_by_many_at_once_lose_none(
    open_store: Callable[[], KeyStore], pepper: Pepper, store: KeyStore, ring: Keyring
) -> None:
    shared = ring.create(store, ["generate"])

    def work() -> None:
        mine = open_store()
        own = Keyring([mine], pepper)
        for _ in range(5):
            own.create(mine, ["train"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    ring.revoke(shared.record.id)
    for one in threads:
        one.join(30)
    records = [record for _, record in ring.list()]
    assert len(records) == 21
    assert [record.id for record in records if record.revoked_at is not None] == [shared.record.id]


def test_replacing_what_changed_meanwhile_does_nothing(ring: Keyring, store: KeyStore) -> None:
    record = ring.create(store, ["generate"]).record
    ring.revoke(record.id)
    assert store.replace(record, record.model_copy(update={"name": "late"})) is False
    assert [one.name for one in store.load().values()] == [""]


def test_key_of_another_pepper_opens_nothing_and_none_is_made_beside_it(
    ring: Keyring, store: KeyStore, open_store: Callable[[], KeyStore], tmp_path: Path
) -> None:
    made = ring.create(store, ["generate"])
    other = Pepper("x" * 32, tmp_path / "other")
    directory = Directory([open_store()], other)
    directory.refresh()
    assert directory.authenticate(made.secret) is None
    assert directory.has_keys
    with pytest.raises(KeyRefused, match="pepper"):
        Keyring([open_store()], other).create(store, ["generate"])


def test_file_of_keys_that_is_damaged_is_refused_at_first_and_kept_out_later(tmp_path: Path) -> None:
    file, pepper = tmp_path / "keys" / "keys.json", Pepper(None, tmp_path / "keys" / "pepper")
    store = FileKeys(file)
    made = Keyring([store], pepper).create(store, ["generate"])
    directory = Directory([store], pepper)
    directory.refresh(first=True)
    whole = file.read_text()
    for damaged in (whole[:-5], "[]", '{"format": "chorus-keys/1", "keys": [{"id": "x"}]}', "[" * 100_000):
        file.write_text(damaged)
        directory.refresh()
        assert directory.authenticate(made.secret), "what was known holds"
        with pytest.raises(KeysUnavailable):
            Directory([FileKeys(file)], pepper).refresh(first=True)


def test_link_to_a_mounted_file_is_followed(tmp_path: Path) -> None:
    pepper = Pepper(None, tmp_path / "pepper")
    store = FileKeys(tmp_path / "real" / "keys.json")
    made = Keyring([store], pepper).create(store, ["generate"])
    (tmp_path / "link.json").symlink_to(store.path)
    directory = Directory([FileKeys(tmp_path / "link.json")], pepper)
    directory.refresh(first=True)
    assert directory.authenticate(made.secret)


def test_redis_that_goes_away_locks_no_known_key_out_and_a_copy_lets_a_replica_start(
    redis_url: str, tmp_path: Path
) -> None:
    pepper, saved = Pepper(None, tmp_path / "pepper"), tmp_path / "keys" / "known.json"
    store = RedisKeys(redis_url)
    ring = Keyring([store], pepper)
    made, gone = ring.create(store, ["generate"]), ring.create(store, ["generate"])
    ring.revoke(gone.record.id)
    directory = Directory([store], pepper, saved=saved)
    directory.refresh(first=True)
    nowhere = RedisKeys("redis://127.0.0.1:1")
    directory._stores = [nowhere]
    directory.refresh()
    assert directory.authenticate(made.secret)
    cold = Directory([nowhere], pepper, saved=saved)
    cold.refresh(first=True)
    assert cold.authenticate(made.secret)
    assert cold.authenticate(gone.secret) is None
    assert made.secret not in saved.read_text()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    store.close()


def test_redis_that_was_never_read_is_no_place_without_keys(redis_url: str, tmp_path: Path) -> None:
    pepper, saved = Pepper(None, tmp_path / "pepper"), tmp_path / "keys" / "known.json"
    file, store, nowhere = FileKeys(tmp_path / "keys.json"), RedisKeys(redis_url), RedisKeys("redis://127.0.0.1:1")

    def start(redis_keys: RedisKeys) -> Directory:
        directory = Directory([file, redis_keys], pepper, saved=saved)
        directory.refresh(first=True)
        return directory

    fresh = start(nowhere)
    assert (fresh.unread, fresh.has_keys) == (True, False)
    fresh._stores = [file, store]
    fresh.refresh()
    assert (fresh.unread, fresh.has_keys) == (False, False)
    fresh._stores = [file, nowhere]
    fresh.refresh()
    assert (fresh.unread, fresh.has_keys) == (False, False), "what was read holds"
    assert not start(nowhere).unread, "for the next start, too"
    made = Keyring([store], pepper).create(store, ["generate"])
    assert start(store).has_keys
    later = start(nowhere)
    assert (later.unread, later.has_keys) == (False, True)
    assert later.authenticate(made.secret)
    saved.unlink()
    assert start(nowhere).unread, "the copy was there, and is not any more"
    assert not Directory([file], pepper, saved=saved).unread
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    store.close()


def test_redis_that_lost_its_keys_leaves_the_service_locked(redis_url: str, tmp_path: Path) -> None:
    pepper, saved = Pepper(None, tmp_path / "pepper"), tmp_path / "keys" / "known.json"
    store = RedisKeys(redis_url)
    made = Keyring([store], pepper).create(store, ["generate"])
    directory = Directory([store], pepper, saved=saved)
    directory.refresh(first=True)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    directory.refresh()
    assert directory.has_keys
    assert directory.authenticate(made.secret) is None
    later = Directory([store], pepper, saved=saved)
    later.refresh(first=True)
    assert later.has_keys
    store.close()


def test_last_use_is_kept_coarsely(redis_url: str, tmp_path: Path, clock: Clock) -> None:
    store = RedisKeys(redis_url)
    pepper = Pepper(None, tmp_path / "pepper")
    made = Keyring([store], pepper, now=clock).create(store, ["generate"])
    directory = Directory([store], pepper, now=clock)
    directory.refresh()
    clock.now = 1_000_123.0
    directory.authenticate(made.secret)
    directory.refresh()
    assert store.last_used() == {made.record.id: 999_900.0}
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    store.close()


def test_setting_opens_everything_unless_it_has_the_form_of_a_made_key(
    ring: Keyring, store: KeyStore, open_store: Callable[[], KeyStore], pepper: Pepper
) -> None:
    made = ring.create(store, ["generate"])
    plain = Directory([open_store()], pepper, setting="a-key-of-some-length")
    plain.refresh()
    caller = plain.authenticate("a-key-of-some-length")
    assert caller is not None
    assert caller.scopes == {"generate", "train", "admin"}
    formed = Directory([open_store()], pepper, setting=made.secret)
    formed.refresh()
    again = formed.authenticate(made.secret)
    assert again is not None
    assert again.scopes == {"generate"}, "a client's key in the server's environment must not become more than it is"


def test_work_is_the_same_for_every_key_that_opens_nothing(
    ring: Keyring, store: KeyStore, directory: Directory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, expired, revoked = (ring.create(store, ["generate"], lifetime_s=n) for n in (600, 60, 600))
    ring.rotate(known.record.id, overlap_s=1000)
    ring.revoke(revoked.record.id)
    directory.refresh()
    clock.now += 60.5
    calls: list[str] = []

    def count(name: str, real: Callable[..., object]) -> Callable[..., object]:
        return lambda *given: (calls.append(name), real(*given))[1]

    monkeypatch.setattr("app.access.directory.digest_of", count("hash", digest_of))
    monkeypatch.setattr("app.access.directory.hmac.compare_digest", count("compare", hmac.compare_digest))
    work = set()
    for key in (expired.secret, revoked.secret, f"ck_{known.record.id}_{'0' * 64}", f"ck_{'0' * 12}_{'0' * 64}", "x"):
        calls.clear()
        assert directory.authenticate(key) is None
        work.add(tuple(calls))
    assert work == {("hash", "compare", "compare", "hash", "compare")}
