"""Rows → checked examples. A data set has one form throughout, found from its first row:

    {fields..., "label"}             a label task
    {fields..., "output"}            free text, `{"input", "output"}` among them
    {"prompt", "completion"}         OpenAI's older form; the completion goes on directly after the prompt
    {"messages": [...]}              OpenAI's chat form; one example for each of the assistant's turns

Every fault raises InvalidDataset with the row's number. Nothing here knows the backbone or the task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from app.errors import InvalidDataset
from app.training.readers import Format, read_rows

Form = Literal["label", "output", "completion", "messages"]

MIN_ROWS = 4
FEW_ROWS = 50
MAX_FIELDS = 32
MAX_CHARS = 100_000
MAX_LABEL_CHARS = 200
MAX_LABELS = 512

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Example:
    """One answer to learn. `row` is the user's row number; exactly one of `label` and `output` is set."""

    row: int
    fields: Mapping[str, str]
    label: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class RowSet:
    """A checked data set: its form, its input fields in the order of the first row, its examples."""

    form: Form
    fields: tuple[str, ...]
    examples: tuple[Example, ...]

    @cached_property
    def label_counts(self) -> dict[str, int] | None:
        """Label → number of rows, sorted by label; None for free text."""
        if self.form != "label":
            return None
        return dict(sorted(Counter(example.label for example in self.examples if example.label is not None).items()))

    @property
    def labels(self) -> tuple[str, ...] | None:
        return None if self.label_counts is None else tuple(self.label_counts)


def parse_rows(
    source: bytes | Sequence[Mapping[str, Any]], *, format: Format = "jsonl", max_rows: int = 200_000
) -> RowSet:
    """Check a file's bytes, or rows given inline, and return the data set.

    Raises:
        InvalidDataset: with the row's number (`row`): the line of the file, or the place in the list, from 1.
    """
    numbered = read_rows(source, format) if isinstance(source, bytes) else enumerate(source, start=1)
    examples: list[Example] = []
    shape: _Shape | None = None
    count = 0
    for number, row in numbered:
        count += 1
        if count > max_rows:
            raise InvalidDataset(f"more than {max_rows} rows", row=number)
        if not isinstance(row, Mapping):
            raise InvalidDataset(f"a row is an object, not {_kind(row)}", row=number)
        if shape is None:
            shape = _shape_of(row, number)
        examples += shape.read(row, number)
    if shape is None or count < MIN_ROWS:
        raise InvalidDataset(f"at least {MIN_ROWS} rows are needed, these are {count}")
    rows = RowSet(shape.form, shape.fields, tuple(examples))
    if rows.labels is not None and not 2 <= len(rows.labels) <= MAX_LABELS:
        raise InvalidDataset(_label_count_message(rows.labels))
    return rows


def _label_count_message(labels: tuple[str, ...]) -> str:
    if len(labels) == 1:
        return f"all rows have the label {labels[0]!r}; a label task needs at least two labels"
    return f"{len(labels)} different labels, at most {MAX_LABELS} are possible; free text goes into `output`"


@dataclass(frozen=True)
class _Shape:
    """What every row of the set must look like."""

    form: Form
    fields: tuple[str, ...]
    answer: str

    def read(self, row: Mapping[str, Any], number: int) -> Iterable[Example]:
        self._check_keys(row, number)
        if self.form == "messages":
            return _conversation(row["messages"], number)
        fields = {name: _text(row[name], name, number) for name in self.fields}
        if self.form == "label":
            return (Example(number, fields, label=_label(row["label"], number)),)
        return (Example(number, fields, output=_text(row[self.answer], self.answer, number)),)

    def _check_keys(self, row: Mapping[str, Any], number: int) -> None:
        expected = {*self.fields, self.answer} if self.form != "messages" else {"messages"}
        if self.answer not in row:
            other = next((key for key in ("label", "output", "completion", "messages") if key in row), None)
            if other:
                raise InvalidDataset(f"mixed shapes: earlier rows have `{self.answer}`, this has `{other}`", row=number)
        for name in expected:
            if name not in row:
                raise InvalidDataset(f"the field `{name}` is missing", row=number)
        for name in row:
            if name not in expected:
                raise InvalidDataset(f"unknown field {_shown(name)}; the first row has no such field", row=number)


def _shape_of(row: Mapping[str, Any], number: int) -> _Shape:
    keys = tuple(row)
    if "messages" in row:
        if len(keys) > 1:
            raise InvalidDataset("a row with `messages` has no other field", row=number)
        return _Shape("messages", ("input",), "messages")
    if set(keys) == {"prompt", "completion"}:
        return _Shape("completion", ("prompt",), "completion")
    if "label" in row and "output" in row:
        raise InvalidDataset("a row has either `label` or `output`, not both", row=number)
    answer = "label" if "label" in row else "output"
    if answer not in row:
        found = ", ".join(_shown(key) for key in keys[:8]) or "nothing"
        raise InvalidDataset(
            f"no answer: a row has `label` or `output` beside its fields, or `prompt` and `completion`, or `messages`; "
            f"this has {found}",
            row=number,
        )
    fields = tuple(key for key in keys if key != answer)
    _check_fields(fields, number)
    return _Shape("label" if answer == "label" else "output", fields, answer)


def _check_fields(fields: tuple[str, ...], number: int) -> None:
    if not 1 <= len(fields) <= MAX_FIELDS:
        raise InvalidDataset(f"a row has 1 to {MAX_FIELDS} input fields beside its answer", row=number)
    for name in fields:
        if not isinstance(name, str) or not _FIELD.fullmatch(name):
            raise InvalidDataset(
                f"the field name {_shown(name)} cannot be used in a template: letters, digits and `_`, no digit first",
                row=number,
            )


def _label(value: Any, number: int) -> str:
    label = _text(value, "label", number).strip()
    if len(label) > MAX_LABEL_CHARS or any(ord(char) < 32 for char in label):
        raise InvalidDataset(
            f"a label is one line of at most {MAX_LABEL_CHARS} characters; longer answers go into `output`", row=number
        )
    return label


def _text(value: Any, name: str, number: int) -> str:
    if not isinstance(value, str):
        raise InvalidDataset(f"`{name}` is a string, not {_kind(value)}", row=number)
    if not value.strip():
        raise InvalidDataset(f"`{name}` is empty", row=number)
    if len(value) > MAX_CHARS:
        raise InvalidDataset(f"`{name}` has {len(value)} characters, at most {MAX_CHARS} are possible", row=number)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidDataset(f"`{name}` holds a lone surrogate, which is not valid Unicode", row=number) from None
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _shown(name: object) -> str:
    """A key as it may stand in a message: its name if it is short and plain."""
    return f"`{name}`" if isinstance(name, str) and _PLAIN.fullmatch(name) else "(a name that is not shown)"


def _conversation(turns: Any, number: int) -> list[Example]:
    """One example for each of the assistant's turns, unless its `weight` is 0."""
    if not isinstance(turns, list) or not turns:
        raise InvalidDataset("`messages` is a list of turns", row=number)
    context: list[tuple[str, str]] = []
    examples = []
    for place, turn in enumerate(turns, start=1):
        role, content, learn = _turn(turn, place, number)
        if role == "system" and context:
            raise InvalidDataset(f"turn {place}: the system's turn comes first", row=number)
        if role == "assistant":
            if not any(speaker == "user" for speaker, _ in context):
                raise InvalidDataset(f"turn {place}: the assistant speaks before any user", row=number)
            if learn:
                examples.append(Example(number, {"input": _render(context)}, output=content))
        context.append((role, content))
    if not examples:
        raise InvalidDataset("no turn of the assistant to learn from", row=number)
    return examples


def _turn(turn: Any, place: int, number: int) -> tuple[str, str, bool]:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn) <= {"role", "content", "weight"}:
        raise InvalidDataset(f"turn {place}: a turn has `role` and `content`, and may have `weight`", row=number)
    role, weight = turn["role"], turn.get("weight", 1)
    if role not in _ROLES:
        raise InvalidDataset(f"turn {place}: `role` is one of {', '.join(_ROLES)}", row=number)
    if isinstance(weight, bool) or weight not in (0, 1) or ("weight" in turn and role != "assistant"):
        raise InvalidDataset(f"turn {place}: `weight` is 0 or 1, and the assistant's alone", row=number)
    return role, _text(turn["content"], f"messages[{place}].content", number), weight == 1


def _render(context: Sequence[tuple[str, str]]) -> str:
    """What came before an answer, as one text: a single question stands as it is, more turns are named."""
    if len(context) == 1:
        return context[0][1]
    return "\n".join(f"{role.capitalize()}: {content}" for role, content in context)
