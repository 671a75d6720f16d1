"""Request → plan: rows against the task, template and verbalizer against the rows, before anything is queued.

What a request leaves out is taken from the version its alias points to, so that training a task again keeps its
wording; for a new task it is made from the rows. Needs the backbone for its family and for label words as token ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.backbone import Backbone, Template, compile_verbalizer, default_bos, encode_row, label_words, parse_template
from app.backbone.prompt import check_task
from app.backbone.rows import NEUTRAL_MASK, check_mask
from app.errors import InvalidDataset, InvalidPrompt, InvalidTemplate, InvalidVerbalizer
from app.training.data import FEW_ROWS, RowSet
from app.training.datasets import DatasetStore, PinnedData
from app.training.methods import METHODS, MethodConfig, SearchedMethod
from app.training.methods.base import Asked
from app.training.plan import Plan
from app.training.requests import TrainingData, TrainRequest, ValidationData
from app.training.sources import RegistryVersions
from prompt_store import errors as store_errors
from prompt_store.models import PROD, Family, PromptMeta, TaskSpec, Version
from prompt_store.store import PromptStore

DEFAULT_VIRTUAL_TOKENS = 20
SHORT_ANSWER_WORDS = 3
"""Free-text answers of at most this many words on average are judged by exact match, longer ones by ROUGE-L."""

IMBALANCE = 10
"""Rows of the most common label for each of the rarest from which a set is called unbalanced."""

_SLOT = re.compile(r"<prompt(?::(\d{1,6}))?>")


class Planner:
    """Makes plans. `backbone` may be missing: what needs it is then checked by the trainer."""

    def __init__(self, store: PromptStore, datasets: DatasetStore, backbone: Backbone | None = None) -> None:
        self._store = store
        self._datasets = datasets
        self._backbone = backbone

    def plan(self, request: TrainRequest) -> tuple[Plan, dict[str, Any]]:
        """The plan, and what users see of its data.

        Raises InvalidDataset, DatasetNotFound, InvalidTemplate, InvalidVerbalizer, CapabilityMissing, ContextTooLong.
        """
        training, rows = self._read(request.training_data)
        validation, dev = self._read_validation(request.validation_data)
        spec = self._spec(request.task, rows)
        check_rows(rows, spec)
        if dev is not None:
            check_rows(dev, spec)
        origin = self._origin(request)
        current = self._current(request) if origin is None else origin.meta
        if self._backbone is not None:
            check_task(self._backbone, labels=spec.labels is not None)
        template = choose_template(request, rows, current, self._backbone.family if self._backbone else "causal")
        words = choose_verbalizer(request, spec, template, current, rows)
        asked = Asked(template, self._backbone, RegistryVersions(self._store, self._backbone), origin)
        method = METHODS[request.method.type].check(request.method, asked)
        self._check_with_backbone(template, method, words, rows)
        plan = Plan(
            task=request.task,
            spec=spec,
            template=template.source,
            verbalizer=words,
            search_words=request.verbalizer == "search",
            training=training,
            validation=validation,
            split=request.validation_data.split if request.validation_data else None,
            method=method,
            hyperparameters=request.hyperparameters,
            publish=request.publish,
            metadata=request.metadata,
            warnings=tuple(lint(rows, dev, spec)),
        )
        return plan, describe(rows, dev, training)

    def _read(self, source: TrainingData | ValidationData) -> tuple[PinnedData, RowSet]:
        if source.inline is not None:
            rows = self._datasets.parse_inline(source.inline)
            return self._datasets.keep_inline(source.inline), rows
        assert source.dataset is not None
        pinned = self._datasets.pin(source.dataset)
        return pinned, self._datasets.read(pinned)

    def _read_validation(self, source: ValidationData | None) -> tuple[PinnedData | None, RowSet | None]:
        return (None, None) if source is None or source.split is not None else self._read(source)

    def _spec(self, task: str, rows: RowSet) -> TaskSpec:
        try:
            return self._store.get_task(task).spec
        except store_errors.TaskNotFound:
            return new_spec(rows)

    def _origin(self, request: TrainRequest) -> Version | None:
        reference = METHODS[request.method.type].origin(request.method, request.task)
        if reference is None:
            return None
        found = RegistryVersions(self._store, self._backbone).find(reference, "method.source")
        if found.task != request.task:
            raise InvalidPrompt(
                f"{found.task}@{found.number} is a version of another task than {request.task}", param="method.source"
            )
        return found

    def _current(self, request: TrainRequest) -> PromptMeta | None:
        for name in dict.fromkeys((request.publish.alias, PROD)):
            try:
                alias = self._store.get_alias(request.task, name)
                return self._store.get_version(request.task, alias.versions[0]).meta
            except store_errors.NotFound:
                continue
        return None

    def _check_with_backbone(
        self, template: Template, config: MethodConfig, words: Mapping[str, Sequence[str]] | None, rows: RowSet
    ) -> None:
        if self._backbone is None:
            return
        tokenizer, family = self._backbone.tokenizer, self._backbone.family
        method = METHODS[config.type]
        check_mask(tokenizer, template)
        reserve = 1
        if words is not None:
            reserve = compile_verbalizer(tokenizer, words).longest
        beside = method.decoder_tokens(config, template, family)
        encode_row(
            tokenizer,
            method.wording(config, template, family),
            default_bos(tokenizer),
            rows.examples[0].fields,
            max_tokens=self._backbone.max_positions - reserve - beside,
        )


def new_spec(rows: RowSet) -> TaskSpec:
    """What a task that does not exist yet is created with."""
    if rows.labels is not None:
        return TaskSpec(fields=rows.fields, labels=rows.labels, metric="accuracy")
    lengths = [len((example.output or "").split()) for example in rows.examples]
    short = sum(lengths) <= SHORT_ANSWER_WORDS * len(lengths)
    return TaskSpec(fields=rows.fields, metric="exact_match" if short else "rouge_l")


def check_rows(rows: RowSet, spec: TaskSpec) -> None:
    """Raise InvalidDataset unless the rows are rows of this task."""
    first = rows.examples[0].row
    if (rows.labels is None) != (spec.labels is None):
        has = "labels" if spec.labels is not None else "free text as answers (`output`)"
        raise InvalidDataset(f"this task has {has}", row=first)
    for name in spec.fields:
        if name not in rows.fields:
            raise InvalidDataset(f"the task's field `{name}` is missing", row=first)
    for name in rows.fields:
        if name not in spec.fields:
            raise InvalidDataset(f"the task has no field `{name}`; it has {_names(spec.fields)}", row=first)
    if spec.labels is None:
        return
    for example in rows.examples:
        if example.label not in spec.labels:
            raise InvalidDataset(
                f"the label {example.label!r} is not one of the task's: {_names(spec.labels[:20])}", row=example.row
            )


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
        if (
            not current.num_virtual_tokens
        ):  # keys and values of a decoder, which stand nowhere in what its encoder reads
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
            f"the template has the fields {_names(template.fields)}, the rows have {_names(rows.fields)}",
            param="template",
        )
    return template.without_slots() if searched else template


def _goes_on(current: PromptMeta | None, rows: RowSet, family: Family) -> bool:
    """Whether the current version's wording fits these rows and this backbone."""
    if current is None or current.backbone.family != family or not (current.num_virtual_tokens or current.tensors):
        return False
    return set(rows.fields) == _fields(current.template)


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
) -> dict[str, tuple[str, ...]] | None:
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
            raise InvalidVerbalizer(f"no training row has the label {_names(absent[:10])}", param="verbalizer")
        return None
    if set(request.verbalizer) != set(spec.labels):
        raise InvalidVerbalizer(
            f"the verbalizer names exactly the labels {_names(spec.labels[:20])}", param="verbalizer"
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


def lint(rows: RowSet, dev: RowSet | None, spec: TaskSpec) -> list[str]:
    """What is allowed and yet worth saying."""
    found = []
    count = len({example.row for example in rows.examples})
    if count < FEW_ROWS:
        found.append(f"only {count} training rows; results vary much below {FEW_ROWS}")
    answers: dict[tuple[str, ...], set[str | None]] = {}
    for example in rows.examples:
        key = tuple(example.fields[name] for name in rows.fields)
        answers.setdefault(key, set()).add(example.label if example.output is None else example.output)
    if len(answers) < len(rows.examples):
        found.append(f"{len(rows.examples) - len(answers)} training rows repeat the input of an earlier one")
    if spec.labels is not None:
        contrary = sum(len(of) > 1 for of in answers.values())
        if contrary:
            found.append(f"{contrary} inputs have more than one label")
        absent = [label for label in spec.labels if label not in (rows.labels or ())]
        if absent:
            found.append(f"no training row has the label {_names(absent[:10])}")
        found += _imbalance(rows)
    if dev is not None:
        shared = sum(tuple(example.fields[name] for name in rows.fields) in answers for example in dev.examples)
        if shared:
            found.append(f"{shared} validation rows are training rows too")
    return found


def _imbalance(rows: RowSet) -> list[str]:
    counts = sorted((rows.label_counts or {}).items(), key=lambda item: item[1])
    if len(counts) < 2 or counts[-1][1] < IMBALANCE * counts[0][1]:
        return []
    (rare, few), (common, many) = counts[0], counts[-1]
    return [
        f"{few} rows have the label `{rare}` and {many} `{common}`; macro_f1 judges such a task better than accuracy"
    ]


def describe(rows: RowSet, dev: RowSet | None, training: PinnedData) -> dict[str, Any]:
    """The job's `data`: counts that users see."""
    return {
        "rows": len({example.row for example in rows.examples}),
        "examples": len(rows.examples),
        "form": rows.form,
        "digest": training.digest,
        "dataset": training.name,
        "labels": rows.label_counts,
        "validation_rows": len({example.row for example in dev.examples}) if dev is not None else None,
    }


def _fields(template: str) -> set[str]:
    return set(parse_template(template).fields)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
