"""Who may call: key, host, origin."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from app.api.auth import Gatekeeper, check_exposure
from app.api.faults import ForeignOrigin, MisdirectedRequest, Unauthorized, UnsafeExposure
from app.settings import Settings

KEY = "a-key-of-some-length"


def gate(tmp_path: Path, **settings: str) -> Gatekeeper:
    return Gatekeeper(Settings(data_dir=tmp_path, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "a.localhost", "10.1.2.3"])
def test_without_a_key_addresses_and_localhost_are_answered(tmp_path: Path, host: str) -> None:
    gate(tmp_path).check("GET", "/v1/tasks", Headers({"host": host}))


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_without_a_key_other_names_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(MisdirectedRequest):
        gate(tmp_path).check("GET", "/v1/tasks", Headers({"host": host}))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
def test_page_of_another_origin_may_read_but_not_write(tmp_path: Path, origin: str) -> None:
    headers = Headers({"host": "127.0.0.1:8000", "origin": origin})
    gate(tmp_path).check("GET", "/v1/tasks", headers)
    with pytest.raises(ForeignOrigin):
        gate(tmp_path).check("POST", "/v1/generate", headers)


def test_own_pages_may_write(tmp_path: Path) -> None:
    headers = Headers({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"})
    gate(tmp_path).check("POST", "/v1/generate", headers)


def test_two_keys_in_one_request_are_none(tmp_path: Path) -> None:
    pair = (b"authorization", f"Bearer {KEY}".encode())
    with pytest.raises(Unauthorized):
        gate(tmp_path, api_key=KEY).check("GET", "/v1/tasks", Headers(raw=[pair, pair]))


@pytest.mark.parametrize("key", ["", "short"])
def test_short_key_refuses_to_start(tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsafeExposure):
        check_exposure(Settings(data_dir=tmp_path, api_key=key))
