"""`LoadedPrompt`: one version of a task, checked against the backbone and ready to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.rows import Bos
from app.backbone.template import Template, parse_template
from app.backbone.verbalizer import Verbalizer
from app.errors import InvalidPrompt, InvalidTemplate
from prompt_store.models import Decoding, Golden, PromptMeta, Version

TENSOR_NAME = "prompt"
_MAX_NORM_RATIO = 1e4  # of a vector to the median word embedding; beyond it, a corrupt or hostile blob


@dataclass(frozen=True)
class LoadedPrompt:
    """`vectors` [P, H] float32 on the CPU, None for a hand-written prompt. `digest` names its blob."""

    task: str
    version: int
    digest: str
    template: Template
    bos: Bos
    vectors: Tensor | None
    verbalizer: Verbalizer | None
    decoding: Decoding
    golden: tuple[Golden, ...]

    @property
    def num_virtual_tokens(self) -> int:
        return 0 if self.vectors is None else self.vectors.shape[0]


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
        vectors=_check_vectors(where, tensors, template.num_virtual_tokens, backbone),
        verbalizer=_check_verbalizer(where, meta, backbone),
        decoding=meta.decoding,
        golden=meta.golden,
    )


def _check_vectors(where: str, tensors: Mapping[str, np.ndarray], size: int, backbone: Backbone) -> Tensor | None:
    wanted = {TENSOR_NAME} if size else set()
    if set(tensors) != wanted:
        raise InvalidPrompt(f"{where}: tensors {sorted(tensors)}, wanted {sorted(wanted)}")
    if not size:
        return None
    array = tensors[TENSOR_NAME]
    if array.dtype != np.float32 or array.shape != (size, backbone.hidden_size):
        raise InvalidPrompt(f"{where}: {array.dtype} {array.shape}, wanted float32 ({size}, {backbone.hidden_size})")
    vectors = torch.from_numpy(np.ascontiguousarray(array))
    if not torch.isfinite(vectors.to(backbone.dtype)).all():
        raise InvalidPrompt(f"{where}: values that are not finite in {backbone.dtype}")
    median = float(backbone.embedding_weight.float().norm(dim=1).median())
    largest = float(vectors.norm(dim=1).max())
    if median > 0 and largest > _MAX_NORM_RATIO * median:
        raise InvalidPrompt(f"{where}: a vector of norm {largest:.3g}; word embeddings have {median:.3g}")
    return vectors


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
