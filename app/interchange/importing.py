"""An adapter becomes a version: its prompt is given a template and label words, checked against the running backbone,
asked a few texts, and published in one step with where it came from.

The answers to those texts are its golden outputs, as a trainer's would be: every replica replays them before it serves.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from anyio import to_thread

from app.backbone import (
    Backbone,
    LoadedPrompt,
    SoftPrompt,
    compile_verbalizer,
    default_bos,
    label_words,
    parse_template,
)
from app.backbone.prompt import check_prompt, check_task
from app.backbone.soft_prompt import VECTORS, parts_of, place, to_tensors, vectors_of
from app.backbone.template import Template
from app.engine import Answer, Ask, EngineService
from app.errors import (
    CapabilityMissing,
    ChorusError,
    EngineFailure,
    InvalidPrompt,
    InvalidTemplate,
    InvalidVerbalizer,
)
from app.interchange.adapter_config import METHODS
from app.interchange.adapter_files import AdapterFiles
from app.interchange.peft_export import to_adapter
from app.interchange.peft_import import Adapter, to_prompt
from app.registry import Registry
from app.training.examples import Encoder
from app.training.golden import golden_inputs, golden_outputs
from prompt_store import Decoding, Golden, PromptMeta, TaskNotFound, TaskSpec, Version
from prompt_store.models import TensorName

DEFAULT_TEMPLATE = "{text}"
GOLDEN_S = 60.0
_SLOT = re.compile(r"<prompt(:\d{1,6})?>")


@dataclass(frozen=True)
class Wanted:
    """What becomes of an adapter. `template` without a slot gets the prompt in front, where PEFT has it; `task_index`
    chooses from a multitask prompt; `alias` None moves none; `create_task` allows a task that does not exist yet."""

    task: str
    files: AdapterFiles
    task_index: int | None = None
    alias: str | None = "prod"
    create_task: bool = False


@dataclass(frozen=True)
class Draft:
    """A version but for its golden outputs."""

    meta: PromptMeta
    tensors: Mapping[str, np.ndarray]
    spec: TaskSpec
    encoder: Encoder
    prompt: LoadedPrompt


class Interchange:
    """Adapters into the registry and out of it, on one running backbone."""

    def __init__(self, backbone: Backbone, registry: Registry, engine: EngineService) -> None:
        self._backbone, self._registry, self._engine = backbone, registry, engine

    async def take_in(self, wanted: Wanted) -> Version:
        """Publish an adapter as the task's next version.

        Raises:
            CapabilityMissing, InvalidPrompt, TooLarge: the adapter, as `Adapter.read` and `to_prompt` do.
            InvalidTemplate, InvalidVerbalizer: wording that does not fit the adapter, the task or the backbone.
            TaskNotFound: there is no such task, and none is to be created.
            StoreError: as `PromptStore.publish`.
        """
        spec = await self._spec(wanted)
        draft = await to_thread.run_sync(partial(prepare, wanted, spec, self._backbone))
        golden = await self._golden(draft)
        return await self._registry.publish(
            task=wanted.task,
            meta=draft.meta.model_copy(update={"golden": golden}),
            tensors=draft.tensors,
            publication=f"import-{uuid.uuid4().hex}",
            alias=wanted.alias,
            spec=draft.spec,
        )

    async def give_out(self, task: str, number: int) -> AdapterFiles:
        """A version as an adapter. Raises as `Registry.resolve_version`, and CapabilityMissing as `to_adapter`."""
        prompt = await self._registry.resolve_version(f"{task}@{number}")
        return await to_thread.run_sync(to_adapter, prompt, self._backbone)

    async def _golden(self, draft: Draft) -> tuple[Golden, ...]:
        """Labels are scored as any request's; of a text the margins are wanted too, which no request is told."""
        prompt, learned = draft.prompt, draft.prompt.learned
        assert learned is not None
        if prompt.verbalizer is None:
            placed = place(learned, self._backbone.device, torch.float32)
            return await self._engine.between_steps(lambda: golden_outputs(self._backbone, draft.encoder, placed))
        inputs = golden_inputs(prompt.template.fields)
        asks = [Ask(prompt, fields, prompt.decoding) for fields in inputs]
        answers = await self._engine.answer_together(asks, timeout_s=GOLDEN_S)
        return tuple(_scored(fields, answer) for fields, answer in zip(inputs, answers, strict=True))

    async def _spec(self, wanted: Wanted) -> TaskSpec | None:
        try:
            return self._registry.task(wanted.task).spec
        except TaskNotFound:
            await self._registry.refresh()  # made a moment ago, elsewhere
        try:
            return self._registry.task(wanted.task).spec
        except TaskNotFound:
            if not wanted.create_task:
                raise
            return None


def prepare(wanted: Wanted, spec: TaskSpec | None, backbone: Backbone) -> Draft:
    """The version that `wanted` describes, checked. Raises as `Interchange.take_in`."""
    if backbone.family == "masked":
        raise CapabilityMissing("PEFT trains a head together with the prompts of masked models: none can be imported")
    files = wanted.files
    adapter = Adapter.read(files.config, files.model)
    learned = to_prompt(adapter, backbone, task_index=wanted.task_index)
    template = place_prompt(files.template or DEFAULT_TEMPLATE, learned)
    spec = _spec_for(template, files.verbalizer, spec)
    words = _words(files.verbalizer, template, spec)
    check_task(backbone, labels=words is not None)
    verbalizer = None if words is None else compile_verbalizer(backbone.tokenizer, words)
    tensors = {name: np.ascontiguousarray(part.numpy()) for name, part in to_tensors(learned).items()}
    bos = default_bos(backbone.tokenizer)
    meta = PromptMeta(
        task=wanted.task,
        template=template.source,
        verbalizer=words,
        verbalizer_ids=None if verbalizer is None else dict(zip(verbalizer.labels, verbalizer.ids, strict=True)),
        terminated=verbalizer is not None and verbalizer.terminated,
        bos=bos,
        method={"type": METHODS[adapter.config.peft_type], "imported": True},
        backbone=backbone.ref,
        num_virtual_tokens=template.num_virtual_tokens,
        tensors=_shapes(learned),
        decoding=spec.decoding,
        provenance={"source": _source(adapter, wanted)},
    )
    # The engine keeps prompts by their digests, and the blob's own is known only when its golden outputs are.
    prompt = check_prompt(meta, tensors, backbone, digest=secrets.token_hex(32))
    encoder = Encoder(backbone.tokenizer, template, bos, verbalizer, backbone.max_positions)
    return Draft(meta, tensors, spec, encoder, prompt)


def _scored(fields: dict[str, str], answer: Answer | ChorusError) -> Golden:
    if isinstance(answer, EngineFailure):
        raise InvalidPrompt("the model does not answer with this prompt") from answer
    if isinstance(answer, ChorusError):
        raise answer
    return Golden(input=fields, scores=None if answer.log_scores is None else dict(answer.log_scores))


def place_prompt(source: str, learned: SoftPrompt) -> Template:
    """The template with the prompt's slot: where it says, else in front. Raises InvalidTemplate."""
    vectors = vectors_of(learned)
    if vectors is not None:
        size = vectors.shape[0]
    else:
        size = next(parts_of(learned)).shape[3] if "prefix" in to_tensors(learned) else 0
    if _SLOT.search(source) is None and size:
        source = f"<prompt:{size}>{source}"
    elif _SLOT.search(source) is not None and not size:
        raise InvalidTemplate("this prompt stands on the decoder's side: the template has no slot", param="template")
    return parse_template(source, num_virtual_tokens=size or None)


def _spec_for(template: Template, words: Mapping[str, Sequence[str]] | None, spec: TaskSpec | None) -> TaskSpec:
    """The task's, if the wording is of that task; else what it will be created with."""
    if spec is None:
        labels = None if words is None else tuple(words)
        return TaskSpec(
            fields=template.fields,
            labels=labels,
            metric="rouge_l" if labels is None else "accuracy",
            decoding=Decoding(),
        )
    if set(template.fields) != set(spec.fields):
        raise InvalidTemplate(
            f"the template has the fields {_names(template.fields)}, the task has {_names(spec.fields)}",
            param="template",
        )
    if words is not None and spec.labels is None:
        raise InvalidVerbalizer("a free-text task has no labels, so no verbalizer", param="verbalizer")
    if words is not None and set(words) != set(spec.labels or ()):
        raise InvalidVerbalizer(
            f"the verbalizer names exactly the labels {_names(spec.labels or ())}", param="verbalizer"
        )
    return spec


def _words(
    given: Mapping[str, Sequence[str]] | None, template: Template, spec: TaskSpec
) -> dict[str, tuple[str, ...]] | None:
    """In the order of the task's labels; each label its own word where nothing is given."""
    if spec.labels is None:
        return None
    if given is None:
        return label_words(spec.labels, template)
    return {label: tuple(given[label]) for label in spec.labels}


def _shapes(learned: SoftPrompt) -> dict[TensorName, tuple[int, ...]] | None:
    shapes = {name: tuple(part.shape) for name, part in to_tensors(learned).items()}
    return None if set(shapes) == {VECTORS} else cast("dict[TensorName, tuple[int, ...]]", shapes)


def _source(adapter: Adapter, wanted: Wanted) -> dict[str, Any]:
    """What the version says of where it came from."""
    config = adapter.config
    return {
        "format": "peft",
        "peft_type": config.peft_type,
        "peft_version": config.peft_version,
        "base_model": config.base_model_name_or_path,
        "revision": config.revision,
        "task_index": wanted.task_index,
        "sha256": hashlib.sha256(wanted.files.model).hexdigest(),
    }


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
