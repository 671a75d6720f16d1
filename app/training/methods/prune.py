"""Pruning: a version without the vectors that it can do without.

It begins as a version of the task and leaves out one virtual token after the other: the one without which the loss on
the training rows is lowest. Every shorter prompt is judged anew on the dev rows, and the shortest one whose score there
holds is published. Prompts need fewer vectors than they were learned with: leaving out those that hurt, or do nothing,
is Xprompt's token level (Ma et al. 2022), found here by leaving out instead of by gradients.

What leaving out costs changes with what has gone. It is measured anew only for the one that seems cheapest, until that
one still is (the accelerated greedy algorithm, Minoux 1978), instead of for all that are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StrictInt, model_validator

from app.backbone import LoadedPrompt, parse_template
from app.backbone.leaving_out import Place, leave_out, places_of
from app.errors import ChorusError, InvalidPrompt, InvalidTemplate
from app.training.methods.base import Asked, Candidate, Judged, MethodConfig, Searched, SearchedMethod
from app.training.methods.initial import Reference
from prompt_store.models import PromptMeta

if TYPE_CHECKING:
    from app.training.runs import Judgement

MAX_LOSS = 0.01
"""What pruning may cost unless a request says: a point of accuracy."""

PATIENCE = 2
"""So many vectors in a row may go with the score too low, since the score of a few hundred rows moves by chance."""

EVALUATIONS = 8
"""Judgements that a virtual token may cost, on training rows and on dev rows, unless a request says."""

_ROUNDING = 1e-9


class NothingPruned(ChorusError):
    """Every vector is needed."""

    code = "nothing_pruned"


class PruneConfig(MethodConfig):
    """A version's vectors without those that it can do without, one by one, while its score holds."""

    type: Literal["prune"] = "prune"
    source: Reference | None = Field(
        default=None, description="`task@version` of this task; what its alias `prod` points to unless given."
    )
    max_loss: float | None = Field(
        default=None, ge=0, description="How much of the score may be lost, in the metric's unit; 0.01 unless given."
    )
    min_score: float | None = Field(default=None, description="The score that must be kept, instead of `max_loss`.")
    min_vectors: Annotated[StrictInt, Field(ge=1, le=1024)] = Field(default=1, description="Leave at least so many.")
    max_evaluations: Annotated[StrictInt, Field(ge=2, le=100_000)] | None = Field(
        default=None, description="Most judgements; 8 for each virtual token, and 8 more, unless given."
    )

    @model_validator(mode="after")
    def _one_floor(self) -> Self:
        if self.max_loss is not None and self.min_score is not None:
            raise ValueError("give either `max_loss` or `min_score`")
        return self


class Prune(SearchedMethod):
    config = PruneConfig

    def origin(self, config: PruneConfig, task: str) -> str:
        return config.source or task

    def check(self, config: PruneConfig, asked: Asked) -> PruneConfig:
        origin = asked.origin
        assert origin is not None
        name = f"{origin.task}@{origin.number}"
        if not origin.meta.num_virtual_tokens and not origin.meta.tensors:
            raise InvalidPrompt(f"{name} has no vectors to leave out", param="method.source")
        words = parse_template(origin.meta.template, num_virtual_tokens=origin.meta.num_virtual_tokens).without_slots()
        if asked.template.without_slots().source != words.source:
            raise InvalidTemplate(f"pruning keeps the words of {name}: leave `template` out", param="template")
        most = config.max_evaluations or EVALUATIONS * (1 + _size(origin.meta))
        return config.model_copy(update={"source": name, "max_evaluations": most})

    def evaluations(self, config: PruneConfig) -> int:
        assert config.max_evaluations is not None
        return config.max_evaluations

    def search(self, config: PruneConfig, around: Searched) -> None:
        assert config.source is not None
        source = around.version(config.source)
        path = _Path(source, around)
        whole = around.judge(path.candidate)
        if math.isinf(whole.loss):  # nothing can be said of it, nor of what is left of it
            return
        floor, below = _floor(config, whole), 0
        while len(path.left) > config.min_vectors and below <= PATIENCE:
            path.drop_cheapest()
            below = 0 if around.judge(path.candidate).rank[0] >= floor else below + 1

    def pick(self, config: PruneConfig, judged: Sequence[Judged]) -> tuple[int, Mapping[str, Any]]:
        """The shortest whose score holds. Raises NothingPruned where that is the source itself."""
        whole = judged[0].judgement
        floor = _floor(config, whole)
        number = max((n for n in range(1, len(judged)) if judged[n].judgement.rank[0] >= floor), default=0)
        least = round(-floor if whole.lower_is_better else floor, 6)
        if number == 0:
            raise NothingPruned(
                f"no vector of {config.source} can go: its score is {whole.score:.4f} and {least:.4f} is to be kept",
                param="method",
            )
        dropped = [dict(one.candidate.about) | _told(one) for one in judged[1 : number + 1]]
        return number, {
            "pruned": {
                "source": config.source,
                "before": _told(judged[0]),
                "after": _told(judged[number]),
                "kept_score": least,
                "dropped": dropped,
            }
        }


METHOD = Prune()


class _Cost(NamedTuple):
    """How much the loss rises without one virtual token, as it was when `gone` others had gone."""

    rise: float
    gone: int


class _Path:
    """From the whole version to ever shorter ones."""

    def __init__(self, source: LoadedPrompt, around: Searched) -> None:
        assert source.learned is not None
        self.left = places_of(source.learned)
        self._template, self._learned, self._bos = source.template, source.learned, source.bos
        self._around = around
        self._gone: list[Place] = []
        self._costs = dict.fromkeys(self.left, _Cost(float("-inf"), -1))
        self.candidate = Candidate(self._template, self._learned, self._bos)

    def drop_cheapest(self) -> None:
        place, rise = self._cheapest()
        self._gone.append(place)
        self.left.remove(place)
        del self._costs[place]
        about = {"part": place.part, "index": place.index, "loss_rise": rise}
        self.candidate = self._without((), about)

    def _cheapest(self) -> tuple[Place, float]:
        now = self._around.loss(self.candidate)
        while True:
            place = min(self.left, key=lambda one: (self._costs[one].rise, one))
            rise, gone = self._costs[place]
            if gone == len(self._gone):
                return place, rise
            shorter = self._without((place,), {})
            self._costs[place] = _Cost(self._around.loss(shorter) - now, len(self._gone))

    def _without(self, more: Sequence[Place], about: Mapping[str, Any]) -> Candidate:
        template, learned = leave_out(self._template, self._learned, {*self._gone, *more})
        return Candidate(template, learned, self._bos, about)


def _floor(config: PruneConfig, whole: Judgement) -> float:
    """The least first part of a rank that holds: a higher one is always better."""
    if config.min_score is not None:
        return (-config.min_score if whole.lower_is_better else config.min_score) - _ROUNDING
    return whole.rank[0] - (MAX_LOSS if config.max_loss is None else config.max_loss) - _ROUNDING


def _size(meta: PromptMeta) -> int:
    """Virtual tokens, those on a decoder's side too."""
    if meta.tensors is None:
        return meta.num_virtual_tokens
    return sum(shape[3] if len(shape) == 5 else shape[0] for shape in meta.tensors.values())


def _told(one: Judged) -> dict[str, Any]:
    left = len(places_of(one.candidate.learned))
    return {"vectors": left, "score": one.judgement.score, "loss": one.judgement.loss}
