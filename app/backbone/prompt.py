"""`LoadedPrompt`: one version of a task, checked against the backbone and ready to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.kv import PrefixKV
from app.backbone.rows import Bos
from app.backbone.soft_prompt import PREFIX, VECTORS, SoftPrompt, from_tensors, parts_of, to_tensors, vectors_of
from app.backbone.template import Template, parse_template
from app.backbone.verbalizer import Verbalizer
from app.errors import InvalidPrompt, InvalidTemplate
from prompt_store.models import Decoding, Golden, PromptMeta, Version

_MAX_NORM_RATIO = 1e4  # of a vector to the median word embedding; beyond it, a corrupt or hostile blob


@dataclass(frozen=True)
class LoadedPrompt:
    """`learned` is float32 on the CPU, None for a hand-written prompt. `digest` names its blob."""

    task: str
    version: int
    digest: str
    template: Template
    bos: Bos
    learned: SoftPrompt | None
    verbalizer: Verbalizer | None
    decoding: Decoding
    golden: tuple[Golden, ...]

    @property
    def vectors(self) -> Tensor | None:
        """[P, H] at the template's slots, where it has such vectors."""
        return vectors_of(self.learned)

    @property
    def num_virtual_tokens(self) -> int:
        return self.template.num_virtual_tokens


def load_prompt(version: Version, tensors: Mapping[str, np.ndarray], backbone: Backbone) -> LoadedPrompt:
    """Check a version's metadata and tensors against `backbone`.

    Raises:
        InvalidPrompt: another backbone, a wrong shape or dtype, values that are not finite in the serving dtype, norms
            beyond reason, or verbalizer ids outside the vocabulary.
    """
    meta = version.meta
    where = f"{version.task}@{version.number}"
    if meta.backbone.fingerprint != backbone.fingerprint:
        raise InvalidPrompt(
            f"{where} belongs to the backbone {meta.backbone.name} ({meta.backbone.fingerprint[:12]}); "
            f"this service runs {backbone.name} ({backbone.fingerprint[:12]})"
        )
    try:
        template = parse_template(meta.template, num_virtual_tokens=meta.num_virtual_tokens)
    except InvalidTemplate as error:
        raise InvalidPrompt(f"{where}: {error.message}") from error
    return LoadedPrompt(
        task=version.task,
        version=version.number,
        digest=version.digest,
        template=template,
        bos=meta.bos,
        learned=_check_tensors(where, tensors, template, backbone),
        verbalizer=_check_verbalizer(where, meta, backbone),
        decoding=meta.decoding,
        golden=meta.golden,
    )


def _check_tensors(
    where: str, tensors: Mapping[str, np.ndarray], template: Template, backbone: Backbone
) -> SoftPrompt | None:
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise InvalidPrompt(f"{where}: tensor {name!r} is {array.dtype}, wanted float32")
    learned = from_tensors({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()})
    wanted = prompt_shapes(learned, template, backbone)
    found = {name: tuple(part.shape) for name, part in to_tensors(learned).items()}
    if found != wanted or set(tensors) != set(wanted):
        raise InvalidPrompt(f"{where}: tensors {_shapes(tensors)}, wanted {wanted}")
    if isinstance(learned, PrefixKV) and not template.leads:
        raise InvalidPrompt(f"{where}: keys and values need one slot that comes first in the template")
    if not all(torch.isfinite(part.to(backbone.dtype)).all() for part in parts_of(learned)):
        raise InvalidPrompt(f"{where}: values that are not finite in {backbone.dtype}")
    _check_norms(where, vectors_of(learned), backbone)
    return learned


def prompt_shapes(learned: SoftPrompt | None, template: Template, backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that a prompt of this form must have with this template and backbone."""
    size = template.num_virtual_tokens
    if learned is None or isinstance(learned, Tensor):
        return {VECTORS: (size, backbone.hidden_size)} if size else {}
    if not isinstance(learned, PrefixKV):
        raise InvalidPrompt(f"a prompt of an encoder-decoder, and {backbone.name} is {backbone.family}")
    if backbone.kv_shape is None:
        raise InvalidPrompt(f"{backbone.name} cannot take keys and values from outside")
    return {PREFIX: backbone.kv_shape.prefix(size)}


def _check_norms(where: str, vectors: Tensor | None, backbone: Backbone) -> None:
    if vectors is None:
        return
    median = backbone.embedding_norm
    largest = float(vectors.norm(dim=1).max())
    if median > 0 and largest > _MAX_NORM_RATIO * median:
        raise InvalidPrompt(f"{where}: a vector of norm {largest:.3g}; word embeddings have {median:.3g}")


def _shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sorted(tensors.items())}


def _check_verbalizer(where: str, meta: PromptMeta, backbone: Backbone) -> Verbalizer | None:
    if meta.verbalizer is None and meta.verbalizer_ids is None:
        return None
    words, ids = meta.verbalizer or {}, meta.verbalizer_ids or {}
    if list(words) != list(ids) or any(len(words[label]) != len(ids[label]) for label in words):
        raise InvalidPrompt(f"{where}: verbalizer words and ids do not match")
    flat = [word for of in ids.values() for word in of]
    if not flat or any(not word or not all(0 <= t < backbone.vocab_size for t in word) for word in flat):
        raise InvalidPrompt(f"{where}: verbalizer ids outside the vocabulary")
    return Verbalizer(tuple(words), tuple(words.values()), tuple(ids.values()), meta.terminated)
