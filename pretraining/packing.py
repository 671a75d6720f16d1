"""The stages `tokenizer` and `pack`: from data sets and corpora to shards, overlapping texts dropped, with a manifest.

Nothing is done twice: a stage whose result is there, made from the same recipe and files, returns it.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from pretraining.corpus import is_kept_back, read_records
from pretraining.documents import Document, running_text, whole
from pretraining.errors import WorkError
from pretraining.exercises import exercises
from pretraining.files import digest_of, digest_of_json, read_json, write_json
from pretraining.overlap import Protected
from pretraining.reading import Reading
from pretraining.recipe import Recipe, Source
from pretraining.rows import Purpose, Row, RowReader
from pretraining.shards import Ids, Kinds, Packed, write_shards
from pretraining.tokenizer import encode_documents, load_tokenizer, save_tokenizer, train_tokenizer

BATCH = 2000  # documents tokenised at a time
KEPT_BACK = ".kept_back"
T = TypeVar("T")


class Texts:
    """All text of a recipe after the overlap check, read once for both stages. `dropped` counts what was left out."""

    def __init__(self, recipe: Recipe, data: Path, corpus: Path) -> None:
        self.recipe, self.data, self.corpus = recipe, data, corpus
        self.rows = RowReader(data, recipe.held_out)
        self.seen: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._records: dict[str, list[str]] = {}
        self._exercises: dict[str, list[Row]] = {}

    @cached_property
    def protected(self) -> Protected:
        """The index of every dev and test row, and of the sets held out."""
        index = Protected(self.recipe.pack.ngram)
        for origin, row in self.rows.protected():
            index.add(origin, row)
        index.freeze()
        return index

    def files(self) -> dict[str, str]:
        """Digests of every file read, protected ones too: what the shards depend on beside the recipe."""
        corpora = [self.corpus / source.file for source in self.recipe.sources if source.file]
        found = [*corpora, *sorted(self.data.glob("*/*.jsonl"))]
        return {str(file.relative_to(file.parent.parent)): digest_of(file) for file in found}

    def records(self, source: Source) -> list[str]:
        if source.name not in self._records:
            every = read_records(self.corpus / source.file)
            self._records[source.name] = [one for one in every if not self._overlaps(source.name, one)]
        return self._records[source.name]

    def train_rows(self, name: str) -> list[Row]:
        if name not in self._exercises:
            kept = []
            for row in self.rows.read(name, "train", Purpose.TRAIN):
                if not self._overlaps(name, *(value for key, value in row.items() if key != "label")):
                    kept.append(row)
            self._exercises[name] = kept
        return self._exercises[name]

    def report(self) -> dict[str, Any]:
        """Texts seen and dropped a source, and which protected sets they overlapped."""
        return {
            "ngram": self.protected.n,
            "seen": dict(self.seen),
            "dropped": dict(self.dropped),
            "overlapped": dict(self.protected.found.most_common()),
        }

    def documents(self, source: Source) -> Iterator[Document]:
        """Training documents of a source, shuffled; exercises within each pass, so that no row comes twice in one."""
        rng = random.Random(f"{self.recipe.seed}/{source.name}")
        if source.file:
            kept = [one for one in self.records(source) if not self._kept_back(one)]
            yield from map(running_text, shuffled(kept, rng))
        elif source.corpora:
            yield from shuffled(self._reading(source, rng), rng)
        else:
            turns: list[list[Document]] = [[] for _ in range(source.passes)]
            for name in source.sets:
                for turn, document in exercises(name, self.train_rows(name), source.passes, rng):
                    turns[turn].append(document)
            for documents in turns:
                yield from shuffled(documents, rng)

    def kept_back(self, source: Source) -> Iterator[Document]:
        """Records of a corpus that training never sees."""
        yield from (running_text(one) for one in self.records(source) if self._kept_back(one))

    def _reading(self, source: Source, rng: random.Random) -> list[Document]:
        made: list[Document] = []
        for corpus in (one for one in self.recipe.sources if one.name in source.corpora):
            reading = Reading(corpus.name, rng)
            for record in self.records(corpus):
                if not self._kept_back(record):
                    made += reading.exercises(record)
        return made

    def _kept_back(self, record: str) -> bool:
        return is_kept_back(record, self.recipe.pack.kept_back)

    def _overlaps(self, name: str, *texts: str) -> bool:
        self.seen[name] += 1
        origin = self.protected.overlaps(*texts)
        if origin is None:
            return False
        self.dropped[name] += 1
        return True


def tokenizer_stage(texts: Texts, work: Path) -> Tokenizer:
    """Train the tokenizer on a sample of each source, unless it is there."""
    key = digest_of_json({"recipe": texts.recipe.packing_key(), "files": texts.files()})
    state = work / "tokenizer" / "state.json"
    if not state.is_file() or read_json(state)["key"] != key:
        say("learning the tokenizer")
        trained = train_tokenizer(_sample(texts), texts.recipe.tokenizer.vocabulary)
        digest = save_tokenizer(trained, work / "tokenizer")
        write_json(state, {"key": key, "sha256": digest, "vocabulary": trained.get_vocab_size()})
    return load_tokenizer(work / "tokenizer")


def packed_key(texts: Texts, work: Path) -> str:
    """What the shards in a folder with this tokenizer would be made of. Raises WorkError if it has none."""
    tokenizer_digest = read_json(work / "tokenizer" / "state.json")["sha256"]
    return digest_of_json({"recipe": texts.recipe.packing_key(), "files": texts.files(), "tokenizer": tokenizer_digest})


def check_packed(texts: Texts, folder: Path) -> None:
    """Raises WorkError unless another run has packed these very texts in `folder`, which is left as it is."""
    if read_json(folder / "shards" / "manifest.json")["key"] != packed_key(texts, folder):
        raise WorkError(f"{folder} was packed by another recipe, or from other files: name another folder, or none")


def pack_stage(texts: Texts, work: Path) -> dict[str, Packed]:
    """Shards of every source, and of what is kept back of each corpus, unless they are there."""
    tokenizer = tokenizer_stage(texts, work)
    key = packed_key(texts, work)
    manifest = work / "shards" / "manifest.json"
    if manifest.is_file() and read_json(manifest)["key"] == key:
        return read_manifest(work)
    packed: dict[str, Packed] = {}
    for source in texts.recipe.sources:
        began = time.monotonic()
        packed[source.name] = _pack(work, source.name, texts.documents(source), tokenizer, aligned=source.aligned)
        if source.file:
            name = source.name + KEPT_BACK
            packed[name] = _pack(work, name, texts.kept_back(source), tokenizer, aligned=False)
        one = packed[source.name]
        say(f"{source.name}: {one.documents:,} documents, {one.tokens:,} tokens, {time.monotonic() - began:.0f} s")
    report = texts.report()
    for name, seen in report["seen"].items():
        say(f"overlap: {name}: {report['dropped'].get(name, 0):,} of {seen:,} texts dropped")
    sources = {name: one.to_json() for name, one in packed.items()}
    tokenizer_digest = read_json(work / "tokenizer" / "state.json")["sha256"]
    write_json(manifest, {"key": key, "tokenizer": tokenizer_digest, "sources": sources, "overlap": report})
    return packed


def read_manifest(work: Path) -> dict[str, Packed]:
    """What was packed. Raises WorkError if nothing was."""
    raw = read_json(work / "shards" / "manifest.json")
    try:
        return {name: Packed.from_json(value) for name, value in raw["sources"].items()}
    except (KeyError, TypeError) as error:
        raise WorkError(f"the manifest of the shards is damaged: {error!r}") from None


def shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    order = list(items)
    rng.shuffle(order)
    return order


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _pack(work: Path, name: str, documents: Iterable[Document], tokenizer: Tokenizer, *, aligned: bool) -> Packed:
    return write_shards(work / "shards" / name, _encoded(documents, tokenizer), aligned=aligned)


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Ids, Kinds]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield from encode_documents(tokenizer, batch)
            batch = []
    yield from encode_documents(tokenizer, batch)


def _sample(texts: Texts) -> Iterator[str]:
    """The first documents of each source, up to the recipe's number of characters."""
    for source in texts.recipe.sources:
        left = texts.recipe.tokenizer.sample_chars
        for document in texts.documents(source):
            text = whole(document)
            yield text
            left -= len(text)
            if left <= 0:
                break
