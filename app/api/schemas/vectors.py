"""The wire form of an explained prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from app.api.schemas.base import Reply

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt
    from app.backbone.explain import VectorView


class NearWordView(Reply):
    token: int
    text: str
    cosine: float
    distance: float = Field(description="Euclidean, in units of the median word embedding's norm.")


class OneVectorView(Reply):
    slot: int = Field(description="Which of the template's slots it stands in, from 0.")
    index: int = Field(description="Its place in the prompt, from 0.")
    norm: float = Field(description="In units of the median word embedding's norm.")
    words: list[NearWordView]


class PrefixNormView(Reply):
    index: int
    keys: float
    values: float


class VectorsView(Reply):
    """`vectors` of prompts that stand among words, `prefix` of keys and values; the other is empty."""

    task: str
    version: int
    digest: str
    template: str
    vectors: list[OneVectorView]
    prefix: list[PrefixNormView]

    @classmethod
    def of(cls, prompt: LoadedPrompt, vectors: Sequence[VectorView], norms: Sequence[Sequence[float]]) -> VectorsView:
        slots = [slot for slot, size in enumerate(prompt.template.slots) for _ in range(size)]
        return cls(
            task=prompt.task,
            version=prompt.version,
            digest=prompt.digest,
            template=prompt.template.source,
            vectors=[
                OneVectorView(
                    slot=slots[one.index],
                    index=one.index,
                    norm=one.norm,
                    words=[NearWordView(**vars(word)) for word in one.words],
                )
                for one in vectors
            ],
            prefix=[PrefixNormView(index=i, keys=keys, values=values) for i, (keys, values) in enumerate(norms)],
        )
