"""The pepper: the installation's secret under which keys are hashed. From a setting or the data folder."""

from __future__ import annotations

import secrets
from pathlib import Path

from app.access.file_store import private_folder
from app.access.store import KeysUnavailable
from prompt_store import StoreUnavailable
from prompt_store.durable import locked, read_file, write_file

MIN_CHARS = 32


class Pepper:
    """`given` is the setting; without it the file is read, and made when a key is."""

    def __init__(self, given: str | None, file: Path) -> None:
        self._given, self._file = given, file
        self._known: bytes | None = None

    def read(self) -> bytes | None:
        """None where no key was ever made here. Raises KeysUnavailable."""
        if self._known is None:
            self._known = self._given.encode() if self._given is not None else self._read_file()
        return self._known

    def make(self) -> bytes:
        """The pepper, new if there is none. Raises KeysUnavailable."""
        found = self.read()
        if found is not None:
            return found
        try:
            private_folder(self._file.parent)
            with locked(self._file.with_name(f".{self._file.name}.lock"), exclusive=True):
                if self._read_file() is None:
                    write_file(self._file, secrets.token_hex(32).encode())
                    self._file.chmod(0o600)
        except OSError as error:
            raise KeysUnavailable(f"the pepper cannot be written: {error.strerror}") from error
        except StoreUnavailable as error:
            raise KeysUnavailable(error.message) from error
        made = self.read()
        assert made is not None
        return made

    def _read_file(self) -> bytes | None:
        try:
            found = read_file(self._file.resolve(), limit=4096).strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeysUnavailable(f"the pepper cannot be read: {error.strerror}") from error
        if len(found) < MIN_CHARS:
            raise KeysUnavailable(f"the pepper in {self._file.name} is shorter than {MIN_CHARS} characters")
        return found
