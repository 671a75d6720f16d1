"""Records of a corpus of running text: files of records, xz or plain, parted by a line that holds the byte 0x1E."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO

from pretraining.errors import WorkError

SEPARATOR = "\x1e"
MAX_CHARS = (
    20_000  # a novel is one record; it is read as many, so that one can be kept back or dropped without the rest
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z\"'(])")


def read_records(file: Path) -> Iterator[str]:
    """Records without surrounding white space, empty ones left out, longer ones cut between lines at `MAX_CHARS`.

    Raises WorkError if the file is not there.
    """
    if not file.is_file():
        raise WorkError(f"no corpus file {file.name} in the corpus folder")
    with _open(file) as lines:
        record: list[str] = []
        held = 0
        for line in lines:
            ends = line.strip("\n") == SEPARATOR
            if ends or held > MAX_CHARS:
                yield from _joined(record)
                record, held = [], 0
            if not ends:
                record.append(line)
                held += len(line)
        yield from _joined(record)


def is_kept_back(record: str, share: float) -> bool:
    """Whether a record belongs to the part that is never trained on. The record alone decides, in every run alike."""
    digest = int.from_bytes(blake2b(record.encode(), digest_size=8).digest(), "big")
    return digest < share * 2**64


def sentences(text: str) -> list[str]:
    """A rough cut at full stops that a capital follows, within lines. For making exercises, not for linguistics."""
    return [part.strip() for line in text.splitlines() for part in _SENTENCE_END.split(line) if part.strip()]


def _open(file: Path) -> IO[str]:
    if file.suffix == ".xz":
        return lzma.open(file, "rt", encoding="utf-8", newline="\n")
    return file.open(encoding="utf-8", newline="\n")


def _joined(lines: list[str]) -> Iterator[str]:
    record = "".join(lines).strip()
    if record:
        yield record
