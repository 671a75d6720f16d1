"""Uploaded data sets: bytes checked once, kept in files named by their sha256, found by a user's name.

The record of a name goes to a file beside the data first and to Redis second, so that a lost Redis loses no data set:
reading a name that Redis does not know looks at the file and puts it back. Names never become paths.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import DatasetNotFound, InvalidDataset, InvalidRequest
from app.training import keys
from app.training.connection import reports_outage
from app.training.data import Form, RowSet, parse_rows
from app.training.files import write_atomically
from app.training.readers import Format, sniff_format
from prompt_store import ObjectStore
from prompt_store.durable import storage_errors
from prompt_store.objects import ObjectMissing, ObjectTooLong

_MAX_BYTES = 1 << 30
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class PinnedData(BaseModel):
    """Exactly these bytes, read as this format: what a job is bound to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    format: Format
    name: str | None = None


class Dataset(BaseModel):
    """An uploaded data set as users see it. `labels`: label -> rows, None for free text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    format: Format
    form: Form
    size_bytes: int
    rows: int
    fields: tuple[str, ...]
    labels: dict[str, int] | None = None
    created_at: float


class DatasetStore:
    """Data sets of one installation. `folder` is shared by the API and its workers; where it is not, `objects` is."""

    def __init__(
        self, client: redis.Redis, folder: Path, *, max_rows: int = 200_000, objects: ObjectStore | None = None
    ) -> None:
        self._client = client
        self._folder = folder
        self._objects = objects
        self._max_rows = max_rows

    @reports_outage
    def put(self, name: str, data: bytes, content_type: str = "") -> Dataset:
        """Check and keep a file under a name; the same name again points to the new bytes from then on.

        Raises InvalidDataset with the row at fault, InvalidRequest for a bad name.
        """
        _check_name(name)
        format = sniff_format(data, content_type)
        rows = parse_rows(data, format=format, max_rows=self._max_rows)
        dataset = Dataset(
            name=name,
            digest=self._keep(data),
            format=format,
            form=rows.form,
            size_bytes=len(data),
            rows=len({example.row for example in rows.examples}),
            fields=rows.fields,
            labels=rows.label_counts,
            created_at=time.time(),
        )
        self._write(self._record_path(name), dataset.model_dump_json().encode())
        self._register(dataset)
        return dataset

    @reports_outage
    def get(self, name: str) -> Dataset:
        """Raises DatasetNotFound."""
        if not _NAME.fullmatch(name):
            raise _unknown()
        found = cast(bytes | None, self._client.hget(keys.DATASET_RECORDS, name))
        if found is not None:
            return Dataset.model_validate_json(found)
        try:
            dataset = Dataset.model_validate_json(self._read(self._record_path(name), newest=True))
        except (FileNotFoundError, ValidationError):
            raise _unknown() from None
        self._register(dataset)
        return dataset

    @reports_outage
    def list(self, *, after: str | None = None, limit: int = 100) -> tuple[Sequence[Dataset], bool]:
        """Data sets by name, from behind `after`, and whether there are more."""
        start = "-" if after is None else f"({after}"
        names = cast("Sequence[bytes]", self._client.zrangebylex(keys.DATASETS, start, "+", 0, limit + 1))
        if not names:
            return (), False
        records = cast("Sequence[bytes | None]", self._client.hmget(keys.DATASET_RECORDS, [*names[:limit]]))
        return tuple(Dataset.model_validate_json(record) for record in records if record), len(names) > limit

    @reports_outage
    def pin(self, name: str) -> PinnedData:
        """The bytes a name stands for now. Raises DatasetNotFound."""
        dataset = self.get(name)
        return PinnedData(digest=dataset.digest, format=dataset.format, name=name)

    def keep_inline(self, rows: Sequence[Mapping[str, Any]]) -> PinnedData:
        """Keep rows that came in a request as a JSONL file; row numbers are line numbers."""
        lines = [json.dumps(row, ensure_ascii=True, allow_nan=False) for row in rows]
        return PinnedData(digest=self._keep("\n".join(lines).encode()), format="jsonl")

    def read(self, pinned: PinnedData) -> RowSet:
        """The rows of pinned bytes. Raises InvalidDataset if the file is gone or is not what its name says."""
        try:
            data = self._read(self._data_path(pinned.digest))
        except FileNotFoundError:
            raise InvalidDataset(f"the file of data set {pinned.digest[:12]} is missing on this machine") from None
        if hashlib.sha256(data).hexdigest() != pinned.digest:
            raise InvalidDataset(f"the file of data set {pinned.digest[:12]} is damaged")
        return parse_rows(data, format=pinned.format, max_rows=self._max_rows)

    def parse_inline(self, rows: Sequence[Mapping[str, Any]]) -> RowSet:
        return parse_rows(rows, max_rows=self._max_rows)

    def _keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._data_path(digest)
        if self._objects is not None or not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            self._write(path, data)
        return digest

    def _write(self, path: Path, data: bytes) -> None:
        """To where others look first, then here. Raises StorageFull, StoreUnavailable."""
        if self._objects is not None:
            self._objects.put(self._object(path), data)
        with storage_errors("data sets"):
            write_atomically(path, data)

    def _read(self, path: Path, *, newest: bool = False) -> bytes:
        """What lies here; if nothing does, or somebody else may have written since, from there. Raises
        FileNotFoundError, StoreUnavailable."""
        if self._objects is None or (path.exists() and not newest):
            return path.read_bytes()
        try:
            data = self._objects.get(self._object(path), limit=_MAX_BYTES)
        except (ObjectMissing, ObjectTooLong):
            raise FileNotFoundError(path.name) from None
        with storage_errors("data sets"):
            write_atomically(path, data)
        return data

    def _object(self, path: Path) -> str:
        return f"datasets/{path.relative_to(self._folder).as_posix()}"

    def _register(self, dataset: Dataset) -> None:
        with self._client.pipeline() as pipeline:
            pipeline.hset(keys.DATASET_RECORDS, dataset.name, dataset.model_dump_json())
            pipeline.zadd(keys.DATASETS, {dataset.name: 0})
            pipeline.execute()

    def _data_path(self, digest: str) -> Path:
        return self._folder / f"{digest}.rows"

    def _record_path(self, name: str) -> Path:
        return self._folder / "names" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def objects_at(url: str | None) -> ObjectStore | None:
    """Where data sets are shared, if not in a folder."""
    return None if url is None else ObjectStore(url)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "a data set's name has 1 to 63 characters of a-z, 0-9, `.`, `_` and `-`, a letter or digit first",
            param="name",
        )


def _unknown() -> DatasetNotFound:
    return DatasetNotFound("no data set of this name", param="dataset")
