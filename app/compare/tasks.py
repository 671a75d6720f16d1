"""The rows that a comparison is about: from files to training, dev and test rows that share no input.

Rows have the forms that training takes (`app/training/data.py`). A free-text row may have `references`, a list of good
answers, in place of `output`; the first is the one that is learned.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from app.backbone import Template, label_words, parse_template
from app.errors import InvalidDataset, InvalidRequest
from app.training.closed import Closed
from app.training.data import Example, RowSet, parse_rows
from app.training.examples import sample_rows, split_rows
from app.training.planning import check_rows, new_spec
from app.training.readers import read_rows, sniff_format
from app.training.wording import DEFAULT_VIRTUAL_TOKENS, default_template
from prompt_store.models import Family, Metric

TEST_SHARE, DEV_SHARE = 0.2, 0.1
"""Shares of the rows that are held back where no file of them is given."""


class TaskFiles(Closed):
    """One task of a manifest: its files, and how it is asked."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: Path
    dev: Path | None = None
    test: Path | None = None
    template: str | None = None
    verbalizer: dict[str, list[str]] | None = None


class Manifest(Closed):
    """Several tasks; paths are relative to the manifest's folder."""

    tasks: list[TaskFiles] = Field(min_length=1)

    @staticmethod
    def read(file: Path) -> list[TaskFiles]:
        """Raises InvalidRequest."""
        try:
            found = Manifest.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InvalidRequest(f"{file.name}: {place}: {first['msg']}", param="manifest") from None
        names = [one.name for one in found.tasks]
        if len(set(names)) < len(names):
            raise InvalidRequest(f"{file.name}: two tasks have the same name", param="manifest")
        return [one.model_copy(update=_beside(file, one)) for one in found.tasks]


def _beside(file: Path, one: TaskFiles) -> dict[str, Path]:
    paths = {"data": one.data, "dev": one.dev, "test": one.test}
    return {name: file.parent / path for name, path in paths.items() if path is not None}


@dataclass(frozen=True)
class Limits:
    """Most rows of each kind that are used, drawn with the labels in proportion."""

    train: int = 4000
    dev: int = 200
    test: int = 1000


@dataclass(frozen=True)
class TaskRows:
    """`template` has slots. `references` are the good answers to each test row; of a label task, its label. `dropped`
    rows were left out: training rows with the input of a dev or a test row, dev rows with that of a test row."""

    name: str
    template: Template
    words: Mapping[str, Sequence[str]] | None
    metric: Metric
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    references: tuple[tuple[str, ...], ...]
    dropped: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def labels(self) -> tuple[str, ...] | None:
        return None if self.words is None else tuple(self.words)

    @property
    def digest(self) -> str:
        """Of everything that a result depends on."""
        parts = (self.template.source, sorted((self.words or {}).items()), self.metric)
        rows = [(e.row, sorted(e.fields.items()), e.label, e.output) for e in (*self.train, *self.dev, *self.test)]
        return hashlib.sha256(repr((parts, rows, self.references)).encode()).hexdigest()[:16]


def read_task(files: TaskFiles, family: Family, limits: Limits, *, seed: int = 0) -> TaskRows:
    """Read, split, clean and cut a task's rows.

    Raises InvalidDataset, InvalidTemplate, InvalidVerbalizer with what is wrong; OSError for a file that is not there.
    """
    rows, of_train = _read(files.data)
    spec = new_spec(rows)
    given: dict[str, tuple[RowSet, dict[int, tuple[str, ...]]]] = {}
    for kind, path in (("dev", files.dev), ("test", files.test)):
        if path is not None:
            given[kind] = _read(path)
            check_rows(given[kind][0], spec)
    train, notes = list(rows.examples), []
    held: dict[str, list[Example]] = {}
    for kind, share in (("test", TEST_SHARE), ("dev", DEV_SHARE)):
        if kind in given:
            held[kind] = list(given[kind][0].examples)
        else:
            train, held[kind] = split_rows(train, share, seed=0)
            notes.append(f"{kind} rows are {share:.0%} of the given ones")
    references = given["test"][1] if "test" in given else of_train
    apart = _apart(held["dev"], held["test"])
    dev = sample_rows(apart, limits.dev, seed=seed)
    test = sample_rows(held["test"], limits.test, seed=seed)
    if not dev or not test:
        raise InvalidDataset("too few rows to hold dev and test rows back that share no input")
    kept = _apart(train, (*dev, *test))
    random.Random(seed).shuffle(kept)  # noqa: S311 - an order, not a secret
    template = _template(files.template, rows, family)
    return TaskRows(
        name=files.name,
        template=template,
        words=_words(files.verbalizer, rows, template),
        metric=spec.metric,
        train=tuple(kept[: limits.train]),
        dev=tuple(dev),
        test=tuple(test),
        references=tuple(references.get(e.row) or (str(e.label or e.output),) for e in test),
        dropped=len(train) - len(kept) + len(held["dev"]) - len(apart),
        notes=tuple(notes),
    )


def _read(file: Path) -> tuple[RowSet, dict[int, tuple[str, ...]]]:
    """The rows, and the references of those that have several, by row number."""
    data = file.read_bytes()
    if b'"references"' not in data:
        return parse_rows(data, format=sniff_format(data)), {}
    rows, references = [], {}
    for number, (_, row) in enumerate(read_rows(data, sniff_format(data)), start=1):
        several = row.pop("references", None)
        if several is not None:
            references[number] = _checked(several, number)
            row["output"] = references[number][0]
        rows.append(row)
    return parse_rows(rows), references


def _checked(several: Any, number: int) -> tuple[str, ...]:
    if not isinstance(several, list) or not several or not all(isinstance(one, str) for one in several):
        raise InvalidDataset("`references` is a list of texts", row=number)
    return tuple(several)


def _apart(rows: Sequence[Example], held: Sequence[Example]) -> list[Example]:
    """The rows whose input is no held-back row's."""
    seen = {tuple(sorted(e.fields.items())) for e in held}
    return [e for e in rows if tuple(sorted(e.fields.items())) not in seen]


def _template(source: str | None, rows: RowSet, family: Family) -> Template:
    text = source if source is not None else default_template(rows, family)
    if "<prompt" not in text:
        text = f"<prompt>{text}"
    template = parse_template(text, num_virtual_tokens=DEFAULT_VIRTUAL_TOKENS if "<prompt>" in text else None)
    if set(template.fields) != set(rows.fields):
        raise InvalidRequest(
            f"the template has the fields {', '.join(template.fields)}, the rows have {', '.join(rows.fields)}",
            param="template",
        )
    return template


def _words(
    given: Mapping[str, Sequence[str]] | None, rows: RowSet, template: Template
) -> Mapping[str, Sequence[str]] | None:
    if rows.labels is None:
        return None
    if given is None:
        return label_words(rows.labels, template)
    if set(given) != set(rows.labels):
        raise InvalidRequest(f"the verbalizer names exactly the labels {', '.join(rows.labels)}", param="verbalizer")
    return given
