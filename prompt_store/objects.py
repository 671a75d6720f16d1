"""An object store as this package needs it: whole objects by name, through any file system that fsspec knows.

What is relied on, and what S3 and the stores that speak its protocol promise: an object appears whole or not at all,
whoever looks afterwards sees it, in lists too, and an object that was written outlives the machine. There are no locks,
no renames and no partial writes. The library is loaded when a store is opened, so that a disk needs none of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prompt_store.errors import InvalidBlobsUrl, StoreUnavailable

# `memory` is for tests.
_URL = re.compile(r"(s3|memory)://([a-z0-9][a-z0-9.-]{0,62})((?:/[A-Za-z0-9._=-]+)*)/?")
_AT_ONCE = 256
_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2, "mode": "standard"}}


class ObjectMissing(Exception):
    """There is no object of this name."""


class ObjectTooLong(Exception):
    """The object is larger than its reader accepts."""


def check_url(url: str) -> tuple[str, str]:
    """The scheme and `bucket/prefix` of a URL of blobs. Raises InvalidBlobsUrl for anything else."""
    found = _URL.fullmatch(url)
    if found is None or {".", ".."} & set(found[3].split("/")):
        hint = "; a folder is named by CHORUS_BLOB_DIR" if url.startswith(("/", "file:", ".")) else ""
        raise InvalidBlobsUrl(f"not of the form s3://bucket or s3://bucket/prefix{hint}", param="blobs_url")
    return found[1], found[2] + found[3]


class ObjectStore:
    """Objects below one prefix. Safe to use from several threads and processes; connects on first use."""

    def __init__(self, url: str) -> None:
        """Raises InvalidBlobsUrl, also when the library for the URL's scheme is not installed."""
        scheme, self._root = check_url(url)
        self._files = _open(scheme)

    def put(self, name: str, data: bytes) -> None:
        """Write an object, whole; when this returns it is durable. Raises StoreUnavailable."""
        with _errors(), _no_bucket():
            self._files.pipe_file(self._path(name), data)

    def get(self, name: str, *, limit: int) -> bytes:
        """Raises ObjectMissing, ObjectTooLong before anything is read, StoreUnavailable."""
        with _errors():
            size = self._files.info(self._path(name))["size"]
            if size > limit:
                raise ObjectTooLong(f"{size} bytes, the limit is {limit}")
            return bytes(self._files.cat_file(self._path(name)))

    def get_many(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """Many small objects at once; None for those that are missing. Raises StoreUnavailable."""
        paths = [self._path(name) for name in names]
        found: dict[str, Any] = {}
        with _errors():
            for start in range(0, len(paths), _AT_ONCE):
                found |= _by_path(self._files.cat(paths[start : start + _AT_ONCE], on_error="return"))
            return {name: _bytes_or_none(found, path) for name, path in zip(names, paths, strict=True)}

    def exists(self, name: str) -> bool:
        try:
            with _errors():
                self._files.info(self._path(name))
        except ObjectMissing:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Names of all objects below `folder`, relative to it, in order. Raises StoreUnavailable."""
        root = self._path(folder) + "/"
        with _errors(), _no_bucket():
            paths = self._files.find(root)
        return sorted(path.lstrip("/").removeprefix(root) for path in paths)

    def age_s(self, name: str) -> float:
        """Seconds since the object was written, by the store's clock and ours. Raises ObjectMissing."""
        with _errors():
            return time.time() - float(self._files.modified(self._path(name)).timestamp())

    def copy(self, source: str, target: str) -> None:
        """Raises ObjectMissing."""
        with _errors():
            self._files.cp_file(self._path(source), self._path(target))

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            with _errors():
                self._files.rm_file(self._path(name))
        except ObjectMissing:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _by_path(found: Mapping[str, Any]) -> dict[str, Any]:
    """Some file systems answer with a slash in front."""
    return {path.lstrip("/"): value for path, value in found.items()}


def _bytes_or_none(found: Mapping[str, Any], path: str) -> bytes | None:
    value = found[path]
    if isinstance(value, FileNotFoundError):
        return None
    if isinstance(value, BaseException):
        raise value
    return bytes(value)


def _open(scheme: str) -> Any:
    """A file system of its own, which remembers no listing: other replicas write, too."""
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        from fsspec import get_filesystem_class

        if scheme == "s3":
            options |= {"config_kwargs": _TIMEOUTS, "default_cache_type": "none"}
        return get_filesystem_class(scheme)(**options)
    except ImportError as error:
        message = f"{scheme}:// needs a library that is not installed: pip install 'chorus-serve[s3]'"
        raise InvalidBlobsUrl(message, param="blobs_url") from error


@contextmanager
def _no_bucket() -> Iterator[None]:
    """Around what fails so only where there is no bucket: a store with nothing in it is another thing."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreUnavailable("object store: there is no such bucket") from error


@contextmanager
def _errors() -> Iterator[None]:
    """What the library raises, as ours. Its messages may quote addresses and keys: only the kind is passed on."""
    try:
        yield
    except (ObjectMissing, ObjectTooLong, StoreUnavailable):
        raise
    except FileNotFoundError as error:
        raise ObjectMissing from error
    except Exception as error:  # botocore, aiohttp and s3fs have no base of errors in common
        raise StoreUnavailable(f"object store: {type(error).__name__}") from error
