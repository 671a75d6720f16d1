"""One store over each kind of metadata server and of place for blobs: what one promises, the others keep."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from prompt_store import (
    BlobStore,
    MemoryMetadata,
    Metadata,
    ObjectStore,
    PromptStore,
    RedisMetadata,
    RemoteBlobStore,
)
from prompt_store.places import Blobs
from tests.s3 import S3Server


class Server(Protocol):
    """A metadata server that can lose what it knew."""

    def metadata(self) -> Metadata: ...
    def forget(self) -> None: ...
    def save(self) -> Any: ...
    def put_back(self, saved: Any) -> None: ...


class MemoryServer:
    def __init__(self) -> None:
        self._metadata = MemoryMetadata()

    def metadata(self) -> Metadata:
        return self._metadata

    def forget(self) -> None:
        self.put_back({key: value for key, value in vars(MemoryMetadata()).items() if key != "_changed"})

    def save(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self._metadata).items() if key not in ("_changed", "_log")}
        return {key: value if isinstance(value, int) else dict(value) for key, value in state.items()}

    def put_back(self, saved: dict[str, Any]) -> None:
        vars(self._metadata).update(saved)


class RedisServer:
    def __init__(self, url: str) -> None:
        self._url = url

    def metadata(self) -> Metadata:
        return RedisMetadata(self._url)

    def forget(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.flushall()

    def save(self) -> dict[bytes, bytes]:
        with redis.Redis.from_url(self._url) as client:
            return {key: client.dump(key) for key in client.scan_iter()}

    def put_back(self, saved: dict[bytes, bytes]) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.flushall()
            for key, value in saved.items():
                client.restore(key, 0, value)


@pytest.fixture(params=["memory", "redis", "redis and objects"])
def setting(request: pytest.FixtureRequest) -> str:
    """A metadata server and, where it is not a folder, the place of blobs and records. S3 takes a second for what a
    folder does in a millisecond: `test_object_store.py` has it."""
    return str(request.param)


on_disk = pytest.mark.parametrize("setting", ["memory", "redis"], indirect=True)
"""For tests that look into the folder; `test_object_store.py` has what corresponds."""


@pytest.fixture
def server(setting: str, request: pytest.FixtureRequest) -> Server:
    return MemoryServer() if setting.startswith("memory") else RedisServer(request.getfixturevalue("redis_url"))


@pytest.fixture
def blobs_in(setting: str, request: pytest.FixtureRequest) -> Callable[[Path], Blobs]:
    """Blobs of which those of one folder are the same: a folder, or a prefix that it stands in front of."""
    if setting.endswith("s3"):
        base = request.getfixturevalue("s3_url")
    elif setting.endswith("objects"):
        base = f"memory://{secrets.token_hex(4)}"
    else:
        return BlobStore
    fronts = count()
    return lambda folder: RemoteBlobStore(ObjectStore(f"{base}/{folder.name}"), folder / f"front-{next(fronts)}")


@pytest.fixture
def open_store(server: Server, blobs_in: Callable[[Path], Blobs]) -> Iterator[Callable[[Path], PromptStore]]:
    """Opens further stores over the same server."""
    opened: list[PromptStore] = []

    def open_one(folder: Path) -> PromptStore:
        opened.append(PromptStore(server.metadata(), blobs_in(folder)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[Path], PromptStore], tmp_path: Path) -> PromptStore:
    return open_store(tmp_path / "store")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix on a server that speaks S3's protocol."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{secrets.token_hex(4)}"
