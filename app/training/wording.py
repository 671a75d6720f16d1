"""The words around a prompt: template and verbalizer, as a request names them or as they are chosen for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from app.backbone import Template, label_words, parse_template
from app.backbone.rows import NEUTRAL_MASK
from app.errors import InvalidTemplate, InvalidVerbalizer
from app.training.data import RowSet
from app.training.methods import METHODS, SearchedMethod
from app.training.requests import TrainRequest
from prompt_store.models import HAND_WRITTEN, Family, PromptMeta, TaskSpec

DEFAULT_VIRTUAL_TOKENS = 20

Words = dict[str, tuple[str, ...]]
"""Of each label."""

_SLOT = re.compile(r"<prompt(?::(\d{1,6}))?>")


def choose_template(
    request: TrainRequest, rows: RowSet, current: PromptMeta | None, family: Family = "causal"
) -> Template:
    """The request's template, else the current version's, else one made from the fields; numbers filled in. Without
    slots for a method that learns no vectors."""
    searched = isinstance(METHODS[request.method.type], SearchedMethod)
    wanted = request.hyperparameters.num_virtual_tokens
    size = None if wanted == "auto" else wanted
    if request.template is not None:
        source = request.template
        if size is None and "<prompt>" in source:
            size = DEFAULT_VIRTUAL_TOKENS + sum(int(found) for found in _SLOT.findall(source) if found)
    elif _goes_on(current, rows, family):
        assert current is not None
        source = current.template
        # nothing stands in a hand-written one; keys and values of a decoder stand nowhere in what its encoder reads
        if not current.num_virtual_tokens:
            source, size = "<prompt>" + source, size or DEFAULT_VIRTUAL_TOKENS
        elif size is not None and len(_SLOT.findall(source)) == 1:
            source = _SLOT.sub("<prompt>", source)
    else:
        source, size = default_template(rows, family), size or DEFAULT_VIRTUAL_TOKENS
    template = parse_template(source, num_virtual_tokens=size)
    if not template.slots and not searched:
        raise InvalidTemplate(
            "the template has no slot to learn: put `<prompt:20>` where the vectors shall stand", param="template"
        )
    if set(template.fields) != set(rows.fields):
        raise InvalidTemplate(
            f"the template has the fields {names_of(template.fields)}, the rows have {names_of(rows.fields)}",
            param="template",
        )
    return template.without_slots() if searched else template


def _goes_on(current: PromptMeta | None, rows: RowSet, family: Family) -> bool:
    """Whether the current version's wording fits these rows and this backbone."""
    if current is None or current.backbone.family != family:
        return False
    searched = not current.num_virtual_tokens and not current.tensors and current.method.get("type") != HAND_WRITTEN
    return not searched and set(rows.fields) == _fields(current.template)


def default_template(rows: RowSet, family: Family = "causal") -> str:
    """Prompt, then the fields, then a word that asks for the answer. A completion follows its prompt directly. An
    encoder-decoder is asked nothing, since its decoder writes the answer; a masked model is asked with its mask."""
    if rows.form == "completion" and family != "masked":
        return "<prompt>{prompt}"
    if family != "causal":
        single = len(rows.fields) == 1
        named = (f"{{{name}}}" if single else f"{_named(name)}: {{{name}}}" for name in rows.fields)
        asking = "" if family == "seq2seq" else f" It was {NEUTRAL_MASK}." if single else f" Answer: {NEUTRAL_MASK}."
        return "<prompt>" + " ".join(named) + asking
    if len(rows.fields) == 1:
        return f"<prompt>{{{rows.fields[0]}}}\nAnswer:"
    lines = [f"{_named(name)}: {{{name}}}" for name in rows.fields]
    return "<prompt>" + "\n".join([*lines, "Answer:"])


def _named(field: str) -> str:
    return field.replace("_", " ").capitalize()


def choose_verbalizer(
    request: TrainRequest, spec: TaskSpec, template: Template, current: PromptMeta | None, rows: RowSet
) -> Words | None:
    """The request's words, else the current version's, else each label as its own word; None for free text, and where
    the trainer is to search for them."""
    if spec.labels is None:
        if request.verbalizer is not None:
            raise InvalidVerbalizer("a free-text task has no labels, so no verbalizer", param="verbalizer")
        return None
    if request.verbalizer is None:
        if current is not None and current.verbalizer and request.template is None:
            return {label: tuple(current.verbalizer[label]) for label in spec.labels}
        return label_words(spec.labels, template)
    if request.verbalizer == "search":
        absent = [label for label in spec.labels if label not in (rows.labels or ())]
        if absent:
            raise InvalidVerbalizer(f"no training row has the label {names_of(absent[:10])}", param="verbalizer")
        return None
    if set(request.verbalizer) != set(spec.labels):
        raise InvalidVerbalizer(
            f"the verbalizer names exactly the labels {names_of(spec.labels[:20])}", param="verbalizer"
        )
    words = {label: tuple(request.verbalizer[label]) for label in spec.labels}
    _check_words(words)
    return words


def _check_words(words: Mapping[str, Sequence[str]]) -> None:
    owner: dict[str, str] = {}
    for label, of in words.items():
        for word in of:
            if not word.strip() or len(word) > 200:
                raise InvalidVerbalizer(f"a word of {label!r} is empty or too long", param="verbalizer")
            if owner.setdefault(word, label) != label:
                raise InvalidVerbalizer(
                    f"the word {word!r} stands for {owner[word]!r} and {label!r}", param="verbalizer"
                )


def _fields(template: str) -> set[str]:
    return set(parse_template(template).fields)


def names_of(names: Sequence[str]) -> str:
    """For a message."""
    return ", ".join(f"`{name}`" for name in names)
