"""Request → plan: rows against the task, template and verbalizer against the rows, before anything is queued.

What a request leaves out is taken from the version its alias points to, so that training a task again keeps its
wording; for a new task it is made from the rows. Needs the backbone for its family and for label words as token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.backbone import Backbone, Template, compile_verbalizer, default_bos, encode_row
from app.backbone.prompt import check_task
from app.backbone.rows import check_mask
from app.errors import ChorusError, InvalidDataset, InvalidPrompt
from app.training.data import FEW_ROWS, RowSet
from app.training.datasets import DatasetStore, PinnedData
from app.training.methods import METHODS, MethodConfig
from app.training.methods.base import Asked
from app.training.plan import Member, Plan
from app.training.requests import TrainingData, TrainRequest, ValidationData
from app.training.sources import RegistryVersions
from app.training.sweep import check_top, variants
from app.training.wording import Words, choose_template, choose_verbalizer, names_of
from prompt_store import errors as store_errors
from prompt_store.models import PROD, PromptMeta, TaskSpec, Version
from prompt_store.store import PromptStore

SHORT_ANSWER_WORDS = 3
"""Free-text answers of at most this many words on average are judged by exact match, longer ones by ROUGE-L."""

IMBALANCE = 10
"""Rows of the most common label for each of the rarest from which a set is called unbalanced."""


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
        check_top(request)
        around = _Around(spec, rows, current, origin)
        members = self._members(request, around)
        template, words, method = self._word(request, around) if not members else _first(members)
        plan = Plan(
            task=request.task,
            spec=spec,
            template=template,
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
            members=tuple(
                one if one.verbalizer != words else one.model_copy(update={"verbalizer": None}) for one in members
            ),
            halving=request.sweep is not None and request.sweep.halving,
        )
        return plan, describe(rows, dev, training)

    def _word(
        self, request: TrainRequest, around: _Around
    ) -> tuple[str, dict[str, tuple[str, ...]] | None, MethodConfig]:
        """(template, verbalizer, method) of one prompt, checked."""
        family = self._backbone.family if self._backbone else "causal"
        template = choose_template(request, around.rows, around.current, family)
        words = choose_verbalizer(request, around.spec, template, around.current, around.rows)
        asked = Asked(template, self._backbone, RegistryVersions(self._store, self._backbone), around.origin)
        method = METHODS[request.method.type].check(request.method, asked)
        self._check_with_backbone(template, method, words, around.rows)
        return template.source, words, method

    def _members(self, request: TrainRequest, around: _Around) -> list[Member]:
        """The sweep's members, each checked as a request of its own; errors name the value that is to blame."""
        members = []
        for one in [] if request.sweep is None else variants(request):
            own = {"method": one.method, "hyperparameters": one.hyperparameters, "template": one.template}
            try:
                template, words, method = self._word(request.model_copy(update=own), around)
            except (ChorusError, store_errors.StoreError) as error:
                error.param = one.blame(error.param)
                raise
            members.append(
                Member(
                    settings=dict(one.settings),
                    template=template,
                    verbalizer=words,
                    method=method,
                    hyperparameters=one.hyperparameters,
                )
            )
        return members

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


@dataclass(frozen=True)
class _Around:
    """What a prompt's words are chosen from."""

    spec: TaskSpec
    rows: RowSet
    current: PromptMeta | None
    origin: Version | None


def _first(members: Sequence[Member]) -> tuple[str, Words | None, MethodConfig]:
    return members[0].template, members[0].verbalizer, members[0].method


def _unless(words: Words | None, usual: Words | None) -> Words | None:
    return None if words == usual else words


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
            raise InvalidDataset(f"the task has no field `{name}`; it has {names_of(spec.fields)}", row=first)
    if spec.labels is None:
        return
    for example in rows.examples:
        if example.label not in spec.labels:
            raise InvalidDataset(
                f"the label {example.label!r} is not one of the task's: {names_of(spec.labels[:20])}", row=example.row
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
            found.append(f"no training row has the label {names_of(absent[:10])}")
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
