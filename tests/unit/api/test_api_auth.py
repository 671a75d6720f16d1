"""Who may call: key, host, origin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from app.access import Directory, Keyring
from app.access.places import file_keys, pepper_of, redis_mark
from app.access.redis_store import RedisKeys
from app.api.auth import ROUTES, Gatekeeper, check_exposure, open_access
from app.api.faults import ForeignOrigin, InsufficientScope, MisdirectedRequest, Unauthorized, UnsafeExposure
from app.errors import StoreDown
from app.settings import Settings

KEY = "a-key-of-some-length"


def gate(tmp_path: Path, **settings: str) -> Gatekeeper:
    chosen = Settings(data_dir=tmp_path, **settings)  # type: ignore[arg-type]
    return Gatekeeper(chosen, Directory.open(chosen))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "a.localhost", "10.1.2.3"])
def test_without_a_key_addresses_and_localhost_are_answered(tmp_path: Path, host: str) -> None:
    gate(tmp_path).identify("GET", "/v1/tasks", Headers({"host": host}))


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_without_a_key_other_names_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(MisdirectedRequest):
        gate(tmp_path).identify("GET", "/v1/tasks", Headers({"host": host}))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://[", "http://[::1", "http://a]b"]
)
def test_page_of_another_origin_may_read_but_not_write(tmp_path: Path, origin: str) -> None:
    headers = Headers({"host": "127.0.0.1:8000", "origin": origin})
    gate(tmp_path).identify("GET", "/v1/tasks", headers)
    with pytest.raises(ForeignOrigin):
        gate(tmp_path).identify("POST", "/v1/generate", headers)


def test_origin_that_is_none_may_not_write_even_where_there_is_no_host(tmp_path: Path) -> None:
    with pytest.raises(ForeignOrigin):
        gate(tmp_path, api_key=KEY).identify(
            "POST", "/v1/generate", Headers({"authorization": f"Bearer {KEY}", "origin": "http://["})
        )


def test_key_that_is_set_opens_while_the_keys_in_redis_were_never_read(tmp_path: Path) -> None:
    keeper = gate(tmp_path, api_key=KEY, redis_url="redis://127.0.0.1:1")
    caller = keeper.identify("GET", "/v1/tasks", Headers({"authorization": f"Bearer {KEY}"}))
    keeper.check_scope(caller, "DELETE", "/v1/tasks/a")
    for host in ("127.0.0.1", "0.0.0.0"):
        unread = gate(tmp_path, host=host, redis_url="redis://127.0.0.1:1")
        for headers in ({}, {"authorization": f"Bearer {KEY}"}):
            with pytest.raises(StoreDown):
                unread.identify("GET", "/v1/tasks", Headers({"host": "127.0.0.1", **headers}))


def test_replica_that_hears_of_the_keys_is_not_open_while_it_writes_them_down(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Settings(data_dir=tmp_path, redis_url=redis_url)
    away, there = RedisKeys("redis://127.0.0.1:1"), RedisKeys(redis_url)
    Keyring([there], pepper_of(chosen)).create(there, ["generate"])
    directory = Directory([away], pepper_of(chosen), saved=tmp_path / "keys" / "known.json")
    directory.refresh(first=True)
    keeper, called = Gatekeeper(chosen, directory), []

    def look(*_: object) -> None:
        with pytest.raises(StoreDown):
            keeper.identify("POST", "/v1/train", Headers({"host": "127.0.0.1"}))
        called.append(1)

    monkeypatch.setattr("app.access.directory.write_file", look)
    directory._stores = [there]
    directory.refresh()
    assert called
    with pytest.raises(Unauthorized):
        keeper.identify("POST", "/v1/train", Headers({"host": "127.0.0.1"}))
    there.close()


def test_mark_of_one_redis_says_nothing_of_another(tmp_path: Path, redis_url: str) -> None:
    assert not Directory.open(Settings(data_dir=tmp_path, redis_url=redis_url)).unread
    for url, unread in (("redis://:secret@127.0.0.1:1", True), (redis_url, False)):
        assert Directory.open(Settings(data_dir=tmp_path, redis_url=url)).unread is unread
    marks = [redis_mark(Settings(redis_url=f"redis://{who}127.0.0.1:6379/0")) for who in ("", ":one@", "a:two@")]
    assert len(set(marks)) == 1, "a new password is no other server"


def test_own_pages_may_write(tmp_path: Path) -> None:
    headers = Headers({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"})
    gate(tmp_path).identify("POST", "/v1/generate", headers)


def test_two_keys_in_one_request_are_none(tmp_path: Path) -> None:
    pair = (b"authorization", f"Bearer {KEY}".encode())
    with pytest.raises(Unauthorized):
        gate(tmp_path, api_key=KEY).identify("GET", "/v1/tasks", Headers(raw=[pair, pair]))


@pytest.mark.parametrize("key", ["", "short"])
def test_short_key_refuses_to_start(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsafeExposure):
        check_exposure(Settings(data_dir=tmp_path, api_key=key))


def make_key(settings: Settings, *scopes: str) -> str:
    store = file_keys(settings)
    return Keyring([store], pepper_of(settings)).create(store, scopes).secret  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "chorus.example"])
def test_made_key_is_enough_to_listen_beyond_this_machine(tmp_path: Path, host: str) -> None:
    settings = Settings(data_dir=tmp_path, host=host)
    with pytest.raises(UnsafeExposure, match="chorus keys create"):
        open_access(settings)
    make_key(settings, "admin")
    open_access(settings)


def test_key_of_a_client_in_the_environment_of_a_server_is_none_of_its_own(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, host="0.0.0.0", api_key=f"ck_{'0' * 12}_{'0' * 64}")
    with pytest.raises(UnsafeExposure):
        open_access(settings)


def test_file_of_keys_that_cannot_be_read_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(UnsafeExposure, match="CHORUS_KEYS_FILE"):
        open_access(Settings(data_dir=tmp_path, keys_file=tmp_path / "keys.json"))


def test_beyond_loopback_a_key_is_asked_for_even_if_all_records_were_lost(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, host="0.0.0.0")
    with pytest.raises(Unauthorized):
        Gatekeeper(settings, Directory.open(settings)).identify("GET", "/v1/tasks", Headers({"host": "127.0.0.1"}))


@pytest.mark.parametrize(
    ("scopes", "method", "path", "opens"),
    [
        (("generate",), "POST", "/v1/tasks/a@3/generate", True),
        (("generate",), "GET", "/v1/tasks", True),
        (("generate",), "HEAD", "/docs", True),
        (("generate",), "GET", "/docs/swagger-ui/swagger-ui.css", True),
        (("generate",), "POST", "/v1/train", False),
        (("generate",), "DELETE", "/v1/tasks/a", False),
        (("generate",), "GET", "/v1/datasets", False),
        (("train",), "POST", "/v1/generate", False),
        (("train",), "POST", "/v1/train/job-1/cancel", True),
        (("train",), "PUT", "/v1/tasks/a/aliases/prod", False),
        (("train", "generate"), "POST", "/v1/completions", True),
        (("admin",), "POST", "/v1/train", True),
        (("generate", "train"), "GET", "/v1/nothing-yet", False),
        (("generate", "train"), "PATCH", "/v1/tasks", False),
        (("generate", "train"), "GET", "/v1/tasks/a/../../train", False),
        (("generate", "train"), "GET", "//v1/tasks", False),
        (("admin",), "GET", "/v1/nothing-yet", True),
    ],
)
def test_scope_opens_its_routes_and_no_route_that_is_not_listed(
    tmp_path: Path, scopes: tuple[str, ...], method: str, path: str, opens: bool
) -> None:
    settings = Settings(data_dir=tmp_path)
    secret = make_key(settings, *scopes)
    keeper = Gatekeeper(settings, Directory.open(settings))
    caller = keeper.identify(method, path, Headers({"authorization": f"Bearer {secret}"}))
    if opens:
        keeper.check_scope(caller, method, path)
        return
    with pytest.raises(InsufficientScope):
        keeper.check_scope(caller, method, path)


def test_page_of_the_http_api_lists_every_route_with_its_scope() -> None:
    page = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(GET|POST|PUT|DELETE) (/\S*)` \| (\w+) \| \S", page, re.MULTILINE)
    assert {(method, path): need for method, path, need in listed} == {
        route: need
        for route, need in ROUTES.items()
        if not route[1].endswith(".js")  # part of a page
    }
