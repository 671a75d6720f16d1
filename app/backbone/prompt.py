"""`LoadedPrompt`: one version of a task, checked against the backbone and ready to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.families.masked_scoring import NO_KEYS, NO_TEXT
from app.backbone.families.seq2seq_forward import NO_LEADING_KEYS
from app.backbone.kv import PrefixKV
from app.backbone.rows import Bos, check_mask
from app.backbone.soft_prompt import (
    CROSS_PREFIX,
    DECODER_PREFIX,
    DECODER_VECTORS,
    PREFIX,
    VECTORS,
    EncoderDecoderPrompt,
    SoftPrompt,
    decoder_tokens,
    from_tensors,
    parts_of,
    to_tensors,
    vectors_of,
)
from app.backbone.template import MAX_VIRTUAL_TOKENS, Template, parse_template
from app.backbone.verbalizer import Verbalizer
from app.errors import CapabilityMissing, InvalidPrompt, InvalidTemplate
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
        return self.template.num_virtual_tokens + decoder_tokens(self.learned)


def load_prompt(version: Version, tensors: Mapping[str, np.ndarray], backbone: Backbone) -> LoadedPrompt:
    """Check a version's metadata and tensors against `backbone`. Raises as `check_prompt` does."""
    return check_prompt(version.meta, tensors, backbone, number=version.number, digest=version.digest)


def check_prompt(
    meta: PromptMeta, tensors: Mapping[str, np.ndarray], backbone: Backbone, *, number: int = 0, digest: str = ""
) -> LoadedPrompt:
    """Check metadata and tensors against `backbone`; without a number, those of a version that is yet to be published.

    Raises:
        InvalidPrompt: another backbone, a wrong shape or dtype, values that are not finite in the serving dtype, norms
            beyond reason, or verbalizer ids outside the vocabulary.
        CapabilityMissing: free text, and the backbone is masked.
    """
    where = f"{meta.task}@{number}" if number else meta.task
    if meta.backbone.fingerprint != backbone.fingerprint:
        raise InvalidPrompt(
            f"{where} belongs to the backbone {meta.backbone.name} ({meta.backbone.fingerprint[:12]}); "
            f"this service runs {backbone.name} ({backbone.fingerprint[:12]})"
        )
    try:
        template = parse_template(meta.template, num_virtual_tokens=meta.num_virtual_tokens)
        if backbone.family == "masked":
            check_mask(backbone.tokenizer, template)
    except InvalidTemplate as error:
        raise InvalidPrompt(f"{where}: {error.message}") from error
    check_task(backbone, labels=meta.verbalizer is not None)
    return LoadedPrompt(
        task=meta.task,
        version=number,
        digest=digest,
        template=template,
        bos=meta.bos,
        learned=_check_tensors(where, tensors, template, backbone),
        verbalizer=_check_verbalizer(where, meta, backbone),
        decoding=meta.decoding,
        golden=meta.golden,
    )


def check_task(backbone: Backbone, *, labels: bool) -> None:
    """Raise CapabilityMissing where the backbone cannot answer such a task."""
    if backbone.family == "masked" and not labels:
        raise CapabilityMissing(NO_TEXT)


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
    if isinstance(learned, EncoderDecoderPrompt):
        _check_norms(where, learned.decoder, backbone)
    return learned


def prompt_shapes(learned: SoftPrompt | None, template: Template, backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that a prompt of this form must have with this template and backbone."""
    size = template.num_virtual_tokens
    if learned is None or isinstance(learned, Tensor):
        return {VECTORS: (size, backbone.hidden_size)} if size else {}
    if backbone.family == "masked":
        raise InvalidPrompt(NO_KEYS)
    if isinstance(learned, PrefixKV):
        if backbone.family == "seq2seq":
            raise InvalidPrompt(NO_LEADING_KEYS)
        return {PREFIX: _prefix_shape(backbone, size)}
    if backbone.family != "seq2seq":
        raise InvalidPrompt(f"a prompt of an encoder-decoder, and {backbone.name} is {backbone.family}")
    return _decoder_shapes(learned, size, backbone)


def _decoder_shapes(learned: EncoderDecoderPrompt, size: int, backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """The encoder's part is the template's; the decoder's parts are as long as they are."""
    for name, part in ((DECODER_PREFIX, learned.prefix), (CROSS_PREFIX, learned.cross)):
        if part is not None and part.data.dim() != 5:
            raise InvalidPrompt(f"{name}: keys and values have 5 dimensions, not {part.data.dim()}")
    if learned.decoder is not None and learned.decoder.dim() != 2:
        raise InvalidPrompt(f"{DECODER_VECTORS}: vectors have 2 dimensions, not {learned.decoder.dim()}")
    if decoder_tokens(learned) > MAX_VIRTUAL_TOKENS:
        raise InvalidPrompt(f"at most {MAX_VIRTUAL_TOKENS} virtual tokens on the decoder's side")
    shapes: dict[str, tuple[int, ...]] = {VECTORS: (size, backbone.hidden_size)} if size else {}
    if learned.decoder is not None:
        shapes[DECODER_VECTORS] = (learned.decoder.shape[0], backbone.hidden_size)
    for name, part in ((DECODER_PREFIX, learned.prefix), (CROSS_PREFIX, learned.cross)):
        if part is not None:
            shapes[name] = _prefix_shape(backbone, part.length)
    return shapes


def _prefix_shape(backbone: Backbone, size: int) -> tuple[int, ...]:
    shape = backbone.decoder_kv_shape if backbone.family == "seq2seq" else backbone.kv_shape
    if shape is None:
        raise InvalidPrompt(f"{backbone.name} cannot take keys and values from outside")
    return shape.prefix(size)


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
    apart = backbone.family != "causal"
    return Verbalizer(tuple(words), tuple(words.values()), tuple(ids.values()), meta.terminated, apart)
