"""What a method is: a closed configuration, a check at submission, and one of two ways to find a prompt.

A `LearnedMethod` gives a thing with parameters that says what the prompt is now (`Learner`); the training loop does the
rest. A `SearchedMethod` has no parameters: it asks how good templates are, and the best one is published.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from app.backbone import Backbone, SoftPrompt, Template
from app.backbone.kv import KVShape, PrefixKV
from app.errors import CapabilityMissing
from app.training.closed import Closed


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
    """What a submission is checked against. `backbone` is None where the process has none: the trainer checks then."""

    template: Template
    backbone: Backbone | None
    versions: Versions


class Sources(Protocol):
    """Other versions' vectors, [P, H] float32 on the embeddings' device."""

    def vectors(self, reference: str) -> Tensor:
        """Of `task@number`. Raises InvalidPrompt for another backbone, and for a version that has no vectors."""
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


class Searched(Protocol):
    """What a search looks at and asks. `template` has no slots; `rows` are the training rows, as (their words, label or
    None); `label_words` are the verbalizer's, "" apart."""

    template: Template
    rows: Sequence[tuple[str, str | None]]
    label_words: Sequence[str]

    def judge(self, template: Template) -> tuple[float, float]:
        """Rank of a template on the dev rows, higher is better. Ends the search when the budget is used up; a template
        that was judged before costs nothing."""
        ...


class SearchedMethod(Method):
    """Finds words: publishes a version without tensors, whose template is the best of those judged."""

    @abstractmethod
    def evaluations(self, config: Any) -> int:
        """The most templates that may be judged."""

    @abstractmethod
    def search(self, config: Any, around: Searched) -> None:
        """Judge templates, the plain one first, until there is nothing left to try."""


def state_of(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}


def load_state(learner: Learner, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(state[name])
