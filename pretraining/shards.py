"""Packed text on disk: documents end to end as uint16 ids, with a uint8 kind for each, in shards with digests.

A folder `NAME/` holds `00000.ids`, `00000.kinds`, …; its entry of the manifest says lengths and digests. Shards are
memory-mapped, so a source may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pretraining.documents import ANSWER
from pretraining.errors import WorkError
from pretraining.files import digest_of, write_atomically
from pretraining.tokenizer import BOS

SHARD_TOKENS = 1 << 24
Ids: TypeAlias = NDArray[np.uint16]
Kinds: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Shard:
    name: str
    tokens: int
    ids_sha256: str
    kinds_sha256: str


@dataclass(frozen=True)
class Packed:
    """What the manifest says of one source. `aligned`: windows begin with a document, as exercises need."""

    documents: int
    tokens: int
    answers: int
    aligned: bool
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Packed:
        return cls(**{**value, "shards": tuple(Shard(**shard) for shard in value["shards"])})


def write_shards(
    folder: Path, documents: Iterable[tuple[Ids, Kinds]], *, aligned: bool, shard_tokens: int = SHARD_TOKENS
) -> Packed:
    """Pack encoded documents into `folder`, in the order given. A document may go over from one shard to the next."""
    shards: list[Shard] = []
    count = answers = 0
    ids: list[Ids] = []
    kinds: list[Kinds] = []
    held = 0
    for document_ids, document_kinds in documents:
        count += 1
        answers += int((document_kinds == ANSWER).sum())
        ids.append(document_ids)
        kinds.append(document_kinds)
        held += len(document_ids)
        while held >= shard_tokens:
            all_ids, all_kinds = np.concatenate(ids), np.concatenate(kinds)
            shards.append(_write_shard(folder, len(shards), all_ids[:shard_tokens], all_kinds[:shard_tokens]))
            ids, kinds, held = [all_ids[shard_tokens:]], [all_kinds[shard_tokens:]], held - shard_tokens
    if held:
        shards.append(_write_shard(folder, len(shards), np.concatenate(ids), np.concatenate(kinds)))
    return Packed(count, sum(shard.tokens for shard in shards), answers, aligned, tuple(shards))


def _write_shard(folder: Path, number: int, ids: Ids, kinds: Kinds) -> Shard:
    name = f"{number:05d}"
    ids_file, kinds_file = folder / f"{name}.ids", folder / f"{name}.kinds"
    write_atomically(ids_file, ids.astype("<u2").tobytes())
    write_atomically(kinds_file, kinds.tobytes())
    return Shard(name, len(ids), digest_of(ids_file), digest_of(kinds_file))


class PackedReader:
    """Reads windows out of the shards of one source, and goes on at the begin after the end."""

    def __init__(self, folder: Path, packed: Packed, *, verify: bool = False) -> None:
        """Raises WorkError if a shard is missing, of another length, or (`verify`) of other content."""
        self.packed = packed
        self._ids: list[Ids] = []
        self._kinds: list[Kinds] = []
        for shard in packed.shards:
            for suffix, width, digest in ((".ids", 2, shard.ids_sha256), (".kinds", 1, shard.kinds_sha256)):
                file = folder / f"{shard.name}{suffix}"
                if not file.is_file() or file.stat().st_size != shard.tokens * width:
                    raise WorkError(f"{file} is not what the manifest says: pack again")
                if verify and digest_of(file) != digest:
                    raise WorkError(f"{file} does not have the digest that the manifest says: pack again")
            self._ids.append(np.memmap(folder / f"{shard.name}.ids", "<u2", "r"))
            self._kinds.append(np.memmap(folder / f"{shard.name}.kinds", np.uint8, "r"))
        self._ends = np.cumsum([shard.tokens for shard in packed.shards])

    def __len__(self) -> int:
        return self.packed.tokens

    def window(self, start: int, length: int) -> tuple[Ids, Kinds]:
        """`length` ids and kinds from token `start` on, round the end if need be."""
        ids, kinds = np.empty(length, np.uint16), np.empty(length, np.uint8)
        done = 0
        for shard, low, high in self._parts(start % len(self), length):
            ids[done : done + high - low] = self._ids[shard][low:high]
            kinds[done : done + high - low] = self._kinds[shard][low:high]
            done += high - low
        return ids, kinds

    def documents(self) -> Iterator[tuple[Ids, Kinds]]:
        """Every document as packed. For evaluation and tests; training reads windows."""
        ids, kinds = self.window(0, len(self))
        starts = np.flatnonzero(ids == BOS)
        for low, high in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[low:high], kinds[low:high]

    def _parts(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(shard, from, to) pieces that make up a window."""
        while length:
            shard = int(np.searchsorted(self._ends, start, side="right"))
            begin = int(self._ends[shard - 1]) if shard else 0
            high = min(int(self._ends[shard]), start + length)
            yield shard, start - begin, high - begin
            length -= high - start
            start = high % len(self)
