"""What a load asks: tasks drawn by weight, inputs from a file or made of words, as requests ready to be sent.

The same seed asks the same requests in the same order. Knows no HTTP beyond a path and a body.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.cli.errors import CliError, Exit

# Plain words, most of them one token in any tokenizer; a text of them is new each time and says nothing.
_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were her all she there would their we him been has when who will more no if out so said what up "
    "its about into than them can only other new some could time these two may then do first any my now such like "
    "our over man me even most made after also did many before must through back years where much your way well "
    "down should because each just those people how too little state good very make world still own see men work "
    "long get here between both life being under never day same another know while last might us great old year "
    "off come since against go came right used take three"
)
WORDS = tuple(_WORDS.split())
TRIAL_WORDS = 4


@dataclass(frozen=True)
class Target:
    """A task as it is asked: `ref` names it (`task`, `task@version`, `task:alias`), `weight` is its share of the rows.
    `streams` is False for labels: they come whole."""

    ref: str
    weight: float
    fields: tuple[str, ...]
    streams: bool
    rows: Sequence[Mapping[str, str]] | None = None


@dataclass(frozen=True)
class Shot:
    """One request: `refs` names the task of each of its rows."""

    path: str
    body: bytes
    refs: tuple[str, ...]
    stream: bool


@dataclass
class Workload:
    """An endless iterator of requests with `rows` rows each; `words` in each field of a made-up text."""

    targets: Sequence[Target]
    rows: int = 1
    words: int = 32
    stream: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311  (a load is no secret)
        self._weights = [target.weight for target in self.targets]
        self._turns = {target.ref: self._shuffled(target.rows) for target in self.targets if target.rows}

    @property
    def streams(self) -> bool:
        """Whether anything is streamed at all: labels come whole."""
        return self.stream and any(target.streams for target in self.targets)

    def __iter__(self) -> Iterator[Shot]:
        return self

    def __next__(self) -> Shot:
        chosen = self._dice.choices(self.targets, self._weights, k=self.rows)
        if self.rows == 1:
            return self.one(chosen[0])
        rows = [{"task": target.ref, "input": self._input(target), **self.options} for target in chosen]
        return Shot("/v1/generate", _json({"requests": rows}), tuple(target.ref for target in chosen), stream=False)

    def one(self, target: Target) -> Shot:
        """A request of a single row of `target`."""
        stream = self.stream and target.streams
        body = {"input": self._input(target), **self.options, **({"stream": True} if stream else {})}
        path = f"/v1/tasks/{quote(target.ref, safe='@:')}/generate"
        return Shot(path, _json(body), (target.ref,), stream)

    def trial(self, target: Target) -> dict[str, Any]:
        """The body of a request that only tries whether a task answers: short, made up, not streamed."""
        return {"input": self._made_up(target, min(self.words, TRIAL_WORDS)), **self.options}

    def _input(self, target: Target) -> dict[str, str]:
        return dict(next(self._turns[target.ref])) if target.rows else self._made_up(target, self.words)

    def _made_up(self, target: Target, words: int) -> dict[str, str]:
        return {name: " ".join(self._dice.choices(WORDS, k=words)) for name in target.fields}

    def _shuffled(self, rows: Sequence[Mapping[str, str]]) -> Iterator[Mapping[str, str]]:
        """All rows in a drawn order, and then all again in another."""
        order = list(rows)
        while True:
            self._dice.shuffle(order)
            yield from order


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """`nli=3` or `nli` of the command line as reference → weight. Raises CliError."""
    found: dict[str, float] = {}
    for text in given:
        ref, equals, weight = text.partition("=")
        try:
            number = float(weight) if equals else 1.0
        except ValueError:
            number = 0.0
        if not ref or not 0 < number < float("inf"):
            raise CliError(f"--task {text!r}: give TASK or TASK=WEIGHT, a number above 0", Exit.USAGE)
        if ref in found:
            raise CliError(f"--task {ref!r} is given twice", Exit.USAGE, fix=f"--task {ref}=2 for twice the share")
        found[ref] = number
    return found


def read_inputs(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """(row number, row) of a data file, as `chorus train` takes it. Raises CliError."""
    from app.errors import InvalidDataset
    from app.training.readers import read_rows, sniff_format

    try:
        content = file.read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}", Exit.USAGE, fix="set --data") from None
    try:
        rows = list(read_rows(content, "csv" if file.suffix.lower() == ".csv" else sniff_format(content)))
    except InvalidDataset as error:
        raise CliError(f"{file.name}: {error.message}", Exit.USAGE) from None
    if not rows:
        raise CliError(f"{file.name} has no rows", Exit.USAGE)
    return rows


def rows_for(ref: str, fields: Sequence[str], rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[dict[str, str]]:
    """The rows that have every field of a task as text, without what else they have. Raises CliError if none does."""
    fit = [{name: row[name] for name in fields} for _, row in rows if all(_is_text(row.get(name)) for name in fields)]
    if not fit:
        number, row = rows[0]
        missing = next(name for name in fields if not _is_text(row.get(name)))
        raise CliError(
            f"row {number} has no text in the field `{missing}`, which {ref} reads; nor has any row all of its fields",
            Exit.USAGE,
            fix=f"add the field to the rows, or choose the tasks they fit: --task TASK (this has {', '.join(row)})",
        )
    return fit


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
