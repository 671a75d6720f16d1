"""Templates: text with `{fields}` and `<prompt:N>` slots of N learned vectors, anywhere.

    "<prompt:20>Premise: {premise}\\nHypothesis: {hypothesis}\\nAnswer:"     leading prompt
    "{text}<prompt:20>"                                                  suffix prompt
    "<prompt:5>{text} It was<prompt:3>"                                  P-tuning, with anchor words
    "Review: {text}\\nSentiment:"                                         a hand-written (hard) prompt

`<prompt>` takes its N from `num_virtual_tokens`. `{{` and `}}` stand for braces. The grammar applies to the template
alone: whatever a user writes into a field stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from app.backbone.tokenizer import Piece
from app.errors import InvalidRequest, InvalidTemplate

MAX_VIRTUAL_TOKENS = 1024
MAX_TEMPLATE_CHARS = 16_384

_TOKEN = re.compile(
    r"(?P<slot><prompt(?::(?P<size>\d{1,6}))?>)|(?P<escape>\{\{|\}\})|(?P<field>\{[^{}]*\})|(?P<brace>[{}])"
)
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_BROKEN_SLOT = re.compile(r"<prompt\b[^>]{0,40}>?")


@dataclass(frozen=True)
class Slot:
    """`size` learned vectors, the prompt's vectors `start` to `start + size`."""

    start: int
    size: int


@dataclass(frozen=True)
class Field:
    name: str


@dataclass(frozen=True)
class Literal:
    text: str


@dataclass(frozen=True)
class Template:
    """A parsed template. `segments` are slots and, between them, tuples of literals and fields."""

    source: str
    segments: tuple[Slot | tuple[Literal | Field, ...], ...]

    @cached_property
    def slots(self) -> tuple[int, ...]:
        return tuple(segment.size for segment in self.segments if isinstance(segment, Slot))

    @cached_property
    def num_virtual_tokens(self) -> int:
        return sum(self.slots)

    @cached_property
    def leads(self) -> bool:
        """Whether its one slot comes before everything else: the place where keys and values may be given."""
        return len(self.slots) == 1 and isinstance(self.segments[0], Slot)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Field names in the order of first use."""
        parts = [part for segment in self.segments if not isinstance(segment, Slot) for part in segment]
        return tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Field)))

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The author's own texts, in order."""
        parts = [part for segment in self.segments if not isinstance(segment, Slot) for part in segment]
        return tuple(part.text for part in parts if isinstance(part, Literal))

    @cached_property
    def separator(self) -> str:
        """The space between the template's end and a free-text answer: one, unless the template ends in white space."""
        last = self.segments[-1]
        if not isinstance(last, Slot) and isinstance(last[-1], Literal) and last[-1].text[-1:].isspace():
            return ""
        return " "

    def without_slots(self) -> Template:
        """The same words as a hand-written prompt: what zero-shot baselines use."""
        return _assemble(tuple(segment for segment in self.segments if not isinstance(segment, Slot)))

    def resized(self, sizes: Sequence[int]) -> Template:
        """The same words with other sizes of the slots, in order; a slot of size 0 is gone.

        Raises InvalidTemplate where the words around a slot that is gone would be read as another."""
        left = iter(sizes)
        parts = []
        for segment in self.segments:
            size = next(left) if isinstance(segment, Slot) else 0
            if size or not isinstance(segment, Slot):
                parts.append(_source(Slot(0, size) if isinstance(segment, Slot) else segment))
        template = parse_template("".join(parts))
        if template.slots != tuple(size for size in sizes if size):
            raise InvalidTemplate("the words around a slot would become a slot without it", param="template")
        return template

    def check_input(self, values: Mapping[str, str]) -> None:
        """Raise InvalidRequest unless `values` holds exactly the template's fields."""
        for name in self.fields:
            if name not in values:
                raise InvalidRequest(
                    f"the field `{name}` is missing; this task takes {_names(self.fields)}", param=f"input.{name}"
                )
        for name in values:
            if name not in self.fields:
                raise InvalidRequest(f"unknown field; this task takes {_names(self.fields)}", param="input")

    def render(self, segment: tuple[Literal | Field, ...], values: Mapping[str, str]) -> list[Piece]:
        return [
            Piece(part.text, author=True) if isinstance(part, Literal) else Piece(values[part.name], author=False)
            for part in segment
        ]


def parse_template(source: str, *, num_virtual_tokens: int | None = None) -> Template:
    """Parse `source`; `num_virtual_tokens` fills the one slot without a number, and must agree with the sum of all.

    Raises:
        InvalidTemplate: a broken slot or brace, no field, too many vectors, or numbers that disagree.
    """
    if not source or len(source) > MAX_TEMPLATE_CHARS:
        raise InvalidTemplate(f"a template has 1 to {MAX_TEMPLATE_CHARS} characters", param="template")
    template = _assemble(_segments(_fill_slot_sizes(source, num_virtual_tokens)))
    if not template.fields:
        raise InvalidTemplate("a template needs at least one {field}", param="template")
    if template.num_virtual_tokens > MAX_VIRTUAL_TOKENS:
        raise InvalidTemplate(
            f"at most {MAX_VIRTUAL_TOKENS} virtual tokens, not {template.num_virtual_tokens}", param="template"
        )
    return template


def _fill_slot_sizes(source: str, total: int | None) -> str:
    sizes = [match["size"] for match in _TOKEN.finditer(source) if match["slot"]]
    if any(size is not None and int(size) == 0 for size in sizes):
        raise InvalidTemplate("a slot holds at least one vector: `<prompt:1>`", param="template")
    open_slots = sizes.count(None)
    known = sum(int(size) for size in sizes if size is not None)
    if open_slots > 1:
        raise InvalidTemplate("only one slot may leave its number out", param="template")
    if open_slots and total is None:
        raise InvalidTemplate(
            "`<prompt>` has no number: write `<prompt:20>` or give num_virtual_tokens", param="template"
        )
    if open_slots and total is not None and total <= known:
        raise InvalidTemplate(
            f"num_virtual_tokens is {total}, but the other slots take {known}", param="num_virtual_tokens"
        )
    if not open_slots and total is not None and total != known:
        raise InvalidTemplate(
            f"num_virtual_tokens is {total}, but the template's slots hold {known}", param="num_virtual_tokens"
        )
    filled = f"<prompt:{(total or 0) - known}>"
    return _TOKEN.sub(lambda m: filled if m["slot"] and m["size"] is None else m[0], source)


def _segments(source: str) -> tuple[Slot | tuple[Literal | Field, ...], ...]:
    segments: list[Slot | list[Literal | Field]] = []
    at, used = 0, 0
    for match in _TOKEN.finditer(source):
        _add_literal(segments, source[at : match.start()])
        at = match.end()
        if match["slot"]:
            segments.append(Slot(used, int(match["size"])))
            used += int(match["size"])
        elif match["escape"]:
            _add_literal(segments, match["escape"][0])
        elif match["field"]:
            _text_segment(segments).append(Field(_field_name(match["field"])))
        else:
            raise InvalidTemplate("a brace without its partner; write {{ or }} for a brace itself", param="template")
    _add_literal(segments, source[at:])
    return tuple(segment if isinstance(segment, Slot) else tuple(segment) for segment in segments)


def _field_name(text: str) -> str:
    name = text[1:-1]
    if not _FIELD.fullmatch(name):
        raise InvalidTemplate("a field is a name in braces, as {text}; write {{ and }} for braces", param="template")
    return name


def _add_literal(segments: list[Slot | list[Literal | Field]], text: str) -> None:
    if not text:
        return
    if _BROKEN_SLOT.search(text):
        raise InvalidTemplate("a slot is written `<prompt:20>` or `<prompt>`", param="template")
    current = _text_segment(segments)
    if current and isinstance(current[-1], Literal):
        current[-1] = Literal(current[-1].text + text)
    else:
        current.append(Literal(text))


def _text_segment(segments: list[Slot | list[Literal | Field]]) -> list[Literal | Field]:
    if not segments or isinstance(segments[-1], Slot):
        segments.append([])
    last = segments[-1]
    assert isinstance(last, list)
    return last


def _assemble(segments: tuple[Slot | tuple[Literal | Field, ...], ...]) -> Template:
    return Template(source="".join(_source(segment) for segment in segments), segments=segments)


def _source(segment: Slot | tuple[Literal | Field, ...]) -> str:
    if isinstance(segment, Slot):
        return f"<prompt:{segment.size}>"
    return "".join(
        f"{{{part.name}}}" if isinstance(part, Field) else part.text.replace("{", "{{").replace("}", "}}")
        for part in segment
    )


def _names(fields: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in fields)
