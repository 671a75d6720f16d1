"""The version that an adapter or a hand-written prompt is to become: wording, task and metadata, all checked."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

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
from app.backbone.rows import check_mask
from app.backbone.soft_prompt import VECTORS, parts_of, to_tensors, vectors_of
from app.backbone.template import Template
from app.errors import CapabilityMissing, InvalidTemplate, InvalidVerbalizer
from app.interchange.adapter_config import METHODS
from app.interchange.adapter_files import AdapterFiles
from app.interchange.peft_import import Adapter, to_prompt
from app.training.examples import Encoder
from prompt_store import Decoding, PromptMeta, TaskSpec
from prompt_store.models import HAND_WRITTEN, TensorName

DEFAULT_TEMPLATE = "{text}"
_SLOT = re.compile(r"<prompt(:\d{1,6})?>")


@dataclass(frozen=True)
class Wording:
    """A hand-written prompt: a template without slots, and the words of each label. Nothing is learned."""

    template: str
    verbalizer: Mapping[str, list[str]] | None = None


@dataclass(frozen=True)
class Wanted:
    """What becomes of an adapter or a hand-written prompt. An adapter's template without a slot gets the prompt in
    front, where PEFT has it; `task_index` chooses from a multitask prompt; `alias` None moves none; `create_task`
    allows a task that does not exist yet."""

    task: str
    files: AdapterFiles | Wording
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


@dataclass(frozen=True)
class _Form:
    """What differs between what is given: where the prompt stands, what it has learned, and where it came from."""

    template: Template
    learned: SoftPrompt | None
    method: dict[str, Any]
    source: dict[str, Any]


def prepare(wanted: Wanted, spec: TaskSpec | None, backbone: Backbone) -> Draft:
    """The version that `wanted` describes, checked. Raises as `Interchange.take_in`."""
    files = wanted.files
    form = _written(files, backbone) if isinstance(files, Wording) else _adapted(files, wanted.task_index, backbone)
    template, learned = form.template, form.learned
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
        method=form.method,
        backbone=backbone.ref,
        num_virtual_tokens=template.num_virtual_tokens,
        tensors=None if learned is None else _shapes(learned),
        decoding=spec.decoding,
        provenance={"source": form.source},
    )
    # The engine keeps prompts by their digests, and the blob's own is known only when its golden outputs are.
    prompt = check_prompt(meta, tensors, backbone, digest=secrets.token_hex(32))
    encoder = Encoder(backbone.tokenizer, template, bos, verbalizer, backbone.max_positions)
    return Draft(meta, tensors, spec, encoder, prompt)


def _adapted(files: AdapterFiles, task_index: int | None, backbone: Backbone) -> _Form:
    if backbone.family == "masked":
        raise CapabilityMissing("PEFT trains a head together with the prompts of masked models: none can be imported")
    adapter = Adapter.read(files.config, files.model)
    learned = to_prompt(adapter, backbone, task_index=task_index)
    return _Form(
        place_prompt(files.template or DEFAULT_TEMPLATE, learned),
        learned,
        {"type": METHODS[adapter.config.peft_type], "imported": True},
        _source(adapter, files, task_index),
    )


def _written(wording: Wording, backbone: Backbone) -> _Form:
    if _SLOT.search(wording.template):
        raise InvalidTemplate(
            "a hand-written prompt has no slot: its vectors are learned by a job, or come with an adapter",
            param="template",
        )
    template = parse_template(wording.template)
    if backbone.family == "masked":
        check_mask(backbone.tokenizer, template)
    return _Form(template, None, {"type": HAND_WRITTEN}, {"format": "template"})


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


def _source(adapter: Adapter, files: AdapterFiles, task_index: int | None) -> dict[str, Any]:
    """What the version says of where it came from."""
    config = adapter.config
    return {
        "format": "peft",
        "peft_type": config.peft_type,
        "peft_version": config.peft_version,
        "base_model": config.base_model_name_or_path,
        "revision": config.revision,
        "task_index": task_index,
        "sha256": hashlib.sha256(files.model).hexdigest(),
    }


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
