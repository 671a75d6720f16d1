"""What an objective is: a model of some family, how a batch becomes something to predict, the loss, and its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from pretraining.mixture import Batch
from pretraining.recipe import Recipe
from pretraining.tokenizer import BOS

HIDDEN = -1e9  # added to a score: its share is then 0 in any precision
BATCH_ROWS = 16  # scored at a time
Ids = Sequence[int]


class Losses(NamedTuple):
    """`total`: the weighted mean, a scalar. The others `[B]`, in nats: sums over each row of plain losses on what
    counts, of how many that are, and the same of answers."""

    total: Tensor
    plain: Tensor
    counted: Tensor
    answer: Tensor
    answers: Tensor


class Prepared(NamedTuple):
    """A batch as the model takes it: `inputs` are the objective's own, each `[B, …]`; `targets` `[B, N]` int64 are to
    be predicted, `weights` `[B, N]` float32 weigh their losses, `answers` `[B, N]` bool says which are answers."""

    inputs: tuple[NDArray[Any], ...]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    answers: NDArray[np.bool_]

    def tensors(self, device: str | torch.device) -> list[Tensor]:
        """What `Objective.losses` takes behind the model, in order."""
        parts = (*self.inputs, self.targets, self.weights, self.answers)
        return [torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts]


class Objective(ABC):
    """Objectives of one `family` train one model, so that a recipe's phases may go from one to another.

    `writes_text`: targets are text as it stands, so that losses can be told in bits a byte.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    writes_text: ClassVar[bool]

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        """Raises RecipeError for phases that this objective cannot be learnt in."""
        self.recipe, self.tokenizer = recipe, tokenizer

    @classmethod
    @abstractmethod
    def build_model(cls, recipe: Recipe, vocabulary: int) -> PreTrainedModel:
        """A model of the recipe's shape, weights drawn from torch's chance. `vocabulary`: the tokenizer's entries."""

    @classmethod
    def new_model(cls, recipe: Recipe, vocabulary: int) -> PreTrainedModel:
        """Fresh weights, drawn from the recipe's seed; fp32, ready to train."""
        torch.manual_seed(recipe.seed)
        return cls.build_model(recipe, vocabulary).train()

    @abstractmethod
    def prepare(self, batch: Batch, chance: np.random.Generator) -> Prepared:
        """Hide what is to be predicted. Shapes depend on the batch's shape alone, as compiled code wants them."""

    @staticmethod
    @abstractmethod
    def losses(model: Any, *tensors: Tensor) -> Losses:
        """Of `Prepared.tensors`, or of some of their rows."""

    @abstractmethod
    def label_scores(self, model: Any, texts: Sequence[str], words: Sequence[str]) -> Tensor:
        """log p(word | text), summed over the word's tokens, as Chorus scores labels. `[texts, words]` float32."""

    @abstractmethod
    def dress(self, tokenizer: Tokenizer) -> None:
        """Change the tokenizer, as packed, to what readers of the exported model need."""


def summed(logits: Tensor, targets: Tensor, weights: Tensor, answers: Tensor) -> Losses:
    """Losses of `logits` `[B, N, V]` float32 on `targets` `[B, N]`."""
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    counted = (weights > 0).float()
    chosen = answers.float()
    total = (each * weights).sum() / weights.sum().clamp(min=1e-9)
    plain = each.detach()
    return Losses(total, (plain * counted).sum(1), counted.sum(1), (plain * chosen).sum(1), chosen.sum(1))


def same_document(ids: Tensor) -> Tensor:
    """`[B, T, T]` bool: whether two tokens of a packed row are of one document. `ids`: `[B, T]`."""
    document = (ids == BOS).cumsum(-1)
    return document[:, :, None] == document[:, None, :]


def attention_form(seen: Tensor, attention: str) -> Tensor:
    """Which key a token sees, `[B, T, S]` bool, as an attention implementation takes it, `[B, 1, T, S]`: bool for
    `sdpa`, float32 to be added for `eager`."""
    seen = seen[:, None]
    return seen if attention == "sdpa" else torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, HIDDEN)


def by_length(texts: Sequence[Ids]) -> Iterator[list[int]]:
    """Places of the texts, a batch at a time; texts of one length need no padding."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]


def in_place(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """(ids, weights, answers), each `[B, T]`, of the tokens themselves; a `Batch` says them of the tokens that follow.
    A window's last token is left out: it is the next window's first, or the end of a document."""
    weights, answers = np.zeros_like(batch.weights), np.zeros_like(batch.answers)
    weights[:, 1:], answers[:, 1:] = batch.weights[:, :-1], batch.answers[:, :-1]
    return batch.ids[:, :-1], weights, answers
