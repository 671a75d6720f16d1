"""Bytes of a data file → numbered rows. Knows JSONL and CSV, not what a row means (`data.py` does).

Row numbers are those a user sees: the line of the file on which the row begins, from 1. Every error names its row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Literal

from app.errors import InvalidDataset

Format = Literal["jsonl", "csv"]

BOM = b"\xef\xbb\xbf"
MAX_ROW_BYTES = 1 << 20
"""Longest line of a JSONL file; a longer one is a file that was not written line by line."""


def sniff_format(data: bytes, content_type: str = "") -> Format:
    """JSONL or CSV: by the content type where it says so, else JSONL if the first character opens an object or list."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in {"text/csv", "application/csv"}:
        return "csv"
    if kind in {"application/jsonl", "application/x-ndjson", "application/x-jsonlines", "application/json"}:
        return "jsonl"
    return "jsonl" if data.removeprefix(BOM).lstrip()[:1] in {b"{", b"["} else "csv"


def read_rows(data: bytes, format: Format) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of each row. Raises InvalidDataset with the row at the first fault."""
    data = data.removeprefix(BOM)
    return _read_jsonl(data) if format == "jsonl" else _read_csv(data)


def _read_jsonl(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        if len(line) > MAX_ROW_BYTES:
            raise InvalidDataset(f"the line is longer than {MAX_ROW_BYTES} bytes", row=number)
        yield number, _parse_object(line, number)


def _parse_object(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError:
        raise InvalidDataset("the line is not valid UTF-8", row=number) from None
    except json.JSONDecodeError as error:
        hint = "; a JSONL file has one object on each line" if line.lstrip()[:1] == b"[" else ""
        raise InvalidDataset(f"not valid JSON: {error.msg} at column {error.colno}{hint}", row=number) from None
    except RecursionError:
        raise InvalidDataset("not valid JSON: nested too deeply", row=number) from None
    except ValueError as error:
        raise InvalidDataset(f"not valid JSON: {error}", row=number) from None
    if not isinstance(row, dict):
        raise InvalidDataset("a row is a JSON object; a JSONL file has one object on each line", row=number)
    return row


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return row


def _read_csv(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidDataset("the file is not valid UTF-8", row=line) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidDataset(f"not valid CSV: {error}", row=number) from None
        if not values:
            continue
        if header is None:
            header = _check_header(values, number)
        elif len(values) != len(header):
            raise InvalidDataset(f"has {len(values)} values where the header names {len(header)} columns", row=number)
        else:
            yield number, dict(zip(header, values, strict=True))


def _check_header(values: list[str], number: int) -> list[str]:
    header = [value.strip() for value in values]
    for name in header:
        if not name:
            raise InvalidDataset("a column of the header has no name", row=number)
        if header.count(name) > 1:
            raise InvalidDataset(f"the header names the column {name!r} twice", row=number)
    return header
