"""One store over each kind of metadata server: what the fake promises, the real one keeps, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from prompt_store import BlobStore, MemoryMetadata, Metadata, PromptStore, RedisMetadata


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


@pytest.fixture(params=["memory", "redis"])
def server(request: pytest.FixtureRequest) -> Server:
    return MemoryServer() if request.param == "memory" else RedisServer(request.getfixturevalue("redis_url"))


@pytest.fixture
def open_store(server: Server) -> Iterator[Callable[[Path], PromptStore]]:
    """Opens further stores over the same server."""
    opened: list[PromptStore] = []

    def open_one(folder: Path) -> PromptStore:
        opened.append(PromptStore(server.metadata(), BlobStore(folder)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[Path], PromptStore], tmp_path: Path) -> PromptStore:
    return open_store(tmp_path / "store")
