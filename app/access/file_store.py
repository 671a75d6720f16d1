"""Keys in a file: those of one data folder, or a file that is mounted into containers. It holds no secrets.

The file is written whole or not at all, and changed under a lock beside it. Readers need no lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.access.keys import KeyRecord
from app.access.store import MAX_KEYS, KeysUnavailable
from prompt_store import StoreUnavailable
from prompt_store.durable import locked, read_file, write_file

FORMAT = "chorus-keys/1"
MAX_BYTES = 16 << 20
_FOLDER_MODE = 0o700


class FileKeys:
    """Implements `KeyStore`."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> str:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise KeysUnavailable(f"the file of keys cannot be read: {error.strerror}") from error
        return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"

    def load(self) -> Mapping[str, KeyRecord]:
        try:
            text = read_file(self.path.resolve(), limit=MAX_BYTES)  # a mounted secret is a link
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise KeysUnavailable(f"the file of keys cannot be read: {error.strerror}") from error
        return read_records(text)

    def add(self, record: KeyRecord) -> None:
        with self._changing() as records:
            if len(records) >= MAX_KEYS:
                raise KeysUnavailable(f"there are {MAX_KEYS} keys already")
            records[record.id] = record

    def replace(self, old: KeyRecord, new: KeyRecord) -> bool:
        with self._changing() as records:
            if records.get(old.id) != old:
                return False
            records[new.id] = new
        return True

    def close(self) -> None:
        return None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, KeyRecord]]:
        path = self.path.resolve()
        try:
            private_folder(path.parent)
            with locked(path.with_name(f".{path.name}.lock"), exclusive=True):
                records = dict(self.load())
                before = dict(records)
                yield records
                if records != before:
                    write_file(path, write_records(records))
        except OSError as error:
            raise KeysUnavailable(f"the file of keys cannot be written: {error.strerror}") from error
        except StoreUnavailable as error:
            raise KeysUnavailable(error.message) from error


def private_folder(folder: Path) -> None:
    """Create it for this user alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def write_records(records: Mapping[str, KeyRecord]) -> bytes:
    keys = [record.model_dump(mode="json") for record in records.values()]
    return json.dumps({"format": FORMAT, "keys": keys}, indent=1).encode()


def read_records(text: bytes) -> dict[str, KeyRecord]:
    """Raises KeysUnavailable for anything else: a file that cannot be understood must open no door."""
    try:
        found: Any = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("keys"), list):
            raise KeysUnavailable(f"the file of keys is not of the form {FORMAT}")
        records = [KeyRecord.model_validate(one) for one in found["keys"]]
    except (ValueError, RecursionError, ValidationError) as error:
        raise KeysUnavailable("the file of keys is damaged") from error
    return {record.id: record for record in records}
