"""What a method is: a closed configuration, a check at submission, and one of two ways to find a prompt.

A `LearnedMethod` gives a thing with parameters that says what the prompt is now (`Learner`); the training loop does the
rest. A `SearchedMethod` has no parameters: it asks how good candidates are (words, and what may stand at their slots),
and one of them is published.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from app.backbone import Backbone, Bos, LoadedPrompt, SoftPrompt, Template
from app.backbone.kv import KVShape, PrefixKV
from app.errors import CapabilityMissing
from app.training.closed import Closed
from prompt_store.models import Family, Version

if TYPE_CHECKING:
    from app.training.runs import Judgement


NO_DECODER_SIDE = "vectors before the decoder's start need an encoder-decoder"


class MethodConfig(Closed):
    """What a request says of its method. Each method has a subclass, told apart by `type`."""

    type: str

    @property
    def text(self) -> str:
        """A text of the request's that the prompt begins as; "" without one."""
        return ""


class Versions(Protocol):
    """The registry, as far as a submission needs it."""

    def pin(self, reference: str, param: str) -> str:
        """`task@number` for `task`, `task@number` or `task:alias`, of a version whose vectors can be started from.

        Raises NotFound and InvalidReference of the store, InvalidPrompt for another backbone or another width."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a submission is checked against. `backbone` is None where the process has none: the trainer checks then.
    `origin` is the version that `Method.origin` named."""

    template: Template
    backbone: Backbone | None
    versions: Versions
    origin: Version | None = None


class Sources(Protocol):
    """Other versions' vectors, [P, H] float32 on the embeddings' device."""

    def vectors(self, reference: str) -> Tensor:
        """Of `task@number`. Raises InvalidPrompt for another backbone, and for a version that has no vectors."""
        ...

    def decoder_vectors(self, reference: str) -> Tensor | None:
        """The same of the decoder's side of an encoder-decoder; None for a version that has none there."""
        ...

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """(`task@number`, vectors) of what each other task's alias `prod` points to, where they fit this backbone."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What a method may look at when it begins.

    embedding       [V, H] float32, the frozen word embeddings
    frequent        token ids of the training rows, most frequent first, special tokens left out
    label_tokens    token ids of each label's words; empty for free text
    text_tokens     token ids of the configuration's `text`; empty without one
    kv_shape        what a token leaves in the layers; None where keys and values cannot be given
    keys_of         token ids -> the keys and values that the frozen model itself computes of them
    decoder_embedding   [V, H] float32, of an encoder-decoder's decoder, which keys and values belong to; else None
    sources         vectors of other versions
    try_out         trains a learner for a tenth of the job's steps, and judges nothing
    """

    num_virtual_tokens: int
    embedding: Tensor
    frequent: Sequence[int]
    label_tokens: Sequence[Sequence[int]]
    text_tokens: Sequence[int]
    generator: torch.Generator
    kv_shape: KVShape | None = None
    keys_of: Callable[[Sequence[int]], PrefixKV] | None = None
    sources: Sources | None = None
    try_out: Callable[[Learner], None] | None = None
    decoder_embedding: Tensor | None = None

    def decoder_side(self, count: int) -> Surroundings:
        """The same for `count` vectors on the decoder's side. Raises CapabilityMissing where there is no such side."""
        if self.decoder_embedding is None:
            raise CapabilityMissing(NO_DECODER_SIDE, param="method.decoder_virtual_tokens")
        return replace(self, num_virtual_tokens=count, embedding=self.decoder_embedding)

    @property
    def hidden_size(self) -> int:
        return int(self.embedding.shape[1])

    @property
    def rms(self) -> float:
        """Scale of the word embeddings, which the scales of vectors are relative to."""
        return float(self.embedding.pow(2).mean().sqrt())

    def source(self, reference: str) -> Tensor:
        """Vectors of another version. Raises CapabilityMissing where there is no registry to ask."""
        if self.sources is None:
            raise CapabilityMissing("no registry is at hand to take another version's vectors from", param="method")
        return self.sources.vectors(reference)


class Learner(Protocol):
    """One prompt being learned. Everything is float32; parameters live on the backbone's device."""

    def prompt(self) -> SoftPrompt:
        """The prompt as the backbone reads it now, differentiable in the parameters. Whatever helped to learn it is
        folded away, so that its tensors are the blob's."""
        ...

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """All trainable tensors, by stable names: what a checkpoint holds. The first is the prompt's own, whose rate
        users set."""
        ...

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        """Peak learning rate of each parameter. `rate` is the user's, for the first of them; None chooses."""
        ...


class Method(ABC):
    """A way to find a prompt. One class in one file, registered by one line in `methods/__init__.py`."""

    config: ClassVar[type[MethodConfig]]

    def check(self, config: Any, asked: Asked) -> MethodConfig:
        """At submission: the configuration with every reference pinned.

        Raises InvalidTemplate, CapabilityMissing and what `Versions.pin` raises."""
        checked: MethodConfig = config
        return checked

    def origin(self, config: Any, task: str) -> str | None:
        """The task's version that the method begins from as a whole, so that a request that names no template and no
        words takes that one's. None where it begins from none: they are then those of the version that the alias
        points to."""
        return None

    def wording(self, config: Any, template: Template, family: Family) -> Template:
        """The template that rows are written in and versions are published with: the plan's, unless what is learned at
        its slots stands nowhere in a text of this family."""
        return template

    def decoder_tokens(self, config: Any, template: Template, family: Family) -> int:
        """Virtual tokens that are learned on an encoder-decoder's decoder side; they count in the context. `template`
        is the plan's."""
        return 0


class LearnedMethod(Method):
    """Finds a prompt by gradient descent."""

    def settle(self, config: Any, around: Surroundings) -> MethodConfig:
        """In the trainer, before it begins: the configuration with what only training rows could decide filled in. The
        version's metadata holds this one. The same surroundings give the same answer."""
        settled: MethodConfig = config
        return settled

    @abstractmethod
    def begin(self, config: Any, around: Surroundings) -> Learner:
        """A learner at its start; all randomness comes from `around.generator`."""


@dataclass(frozen=True)
class Candidate:
    """What a search judges: words, and what stands at their slots (float32, on the backbone's device), or nothing.
    `bos` is that of a version that it is made of, None for the way of new ones. `about` is for the version's card."""

    template: Template
    learned: SoftPrompt | None = None
    bos: Bos | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return self.template.source


class Judged(NamedTuple):
    """A candidate on the dev rows."""

    candidate: Candidate
    judgement: Judgement


class Searched(Protocol):
    """What a search looks at and asks. `template` has no slots; `rows` are the training rows, as (their words, label or
    None); `label_words` are the verbalizer's, "" apart. What was asked before costs nothing, and asking ends the search
    when its budget is used up."""

    template: Template
    rows: Sequence[tuple[str, str | None]]
    label_words: Sequence[str]

    def judge(self, candidate: Candidate) -> Judgement:
        """By the task's metric on the dev rows. One that does not fit the context is worse than all others."""
        ...

    def loss(self, candidate: Candidate) -> float:
        """Mean loss on the training rows, at most a few hundred of them; infinite for one that does not fit."""
        ...

    def version(self, reference: str) -> LoadedPrompt:
        """Another version, its tensors float32 on the backbone's device."""
        ...


class SearchedMethod(Method):
    """Finds a prompt by judging candidates, without gradients."""

    @abstractmethod
    def evaluations(self, config: Any) -> int:
        """The most candidates that may be judged, on dev rows and on training rows."""

    @abstractmethod
    def search(self, config: Any, around: Searched) -> None:
        """Judge candidates, what it begins from first, until there is nothing left to try."""

    def pick(self, config: Any, judged: Sequence[Judged]) -> tuple[int, Mapping[str, Any]]:
        """Which of the candidates judged on the dev rows, in that order, is published, and what the card says of how it
        was found: the best one, the first among equals.

        Raises an error of the service where none is to be."""
        return max(range(len(judged)), key=lambda place: (judged[place].judgement.rank, -place)), {}


def state_of(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}


def load_state(learner: Learner, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(state[name])
