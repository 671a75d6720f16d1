"""SPoT (Vu et al. 2022): begin as another task's prompt, then learn plainly from there.

`init_prompt` names the version, or is "nearest": a plain prompt learns on the rows for a tenth of the job's steps, and
the registry's prompt whose mean vector has the largest cosine with that prompt's is where the job begins. What each
other task's alias `prod` points to is compared. The version's metadata names the one that was taken.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from app.backbone.soft_prompt import vectors_of
from app.errors import CapabilityMissing, NotFound
from app.training.methods.base import Asked, LearnedMethod, Learner, MethodConfig, Surroundings
from app.training.methods.initial import Reference, draw_tokens, fit, rows_of
from app.training.methods.prompt_tuning import PlainPrompt

NEAREST = "nearest"


class SpotConfig(MethodConfig):
    """Free vectors that begin as those of another version."""

    type: Literal["spot"] = "spot"
    init_prompt: Reference = Field(
        default=NEAREST, description='`task@version`, of the same backbone, or "nearest": it is looked for.'
    )


class Spot(LearnedMethod):
    config = SpotConfig

    def check(self, config: SpotConfig, asked: Asked) -> SpotConfig:
        if config.init_prompt == NEAREST:
            return config
        pinned = asked.versions.pin(config.init_prompt, "method.init_prompt")
        return config.model_copy(update={"init_prompt": pinned})

    def settle(self, config: SpotConfig, around: Surroundings) -> SpotConfig:
        if config.init_prompt != NEAREST:
            return config
        if around.sources is None or around.try_out is None:
            raise CapabilityMissing("no registry is at hand to look for the nearest version in", param="method")
        candidates = list(around.sources.others())
        if not candidates:
            raise NotFound("no other task has a version of this backbone to begin as", param="method.init_prompt")
        trial = PlainPrompt(rows_of(around.embedding, draw_tokens(around)), around.rms)
        around.try_out(trial)
        found = vectors_of(trial.prompt())
        assert found is not None
        return config.model_copy(update={"init_prompt": nearest(found.detach(), candidates)})

    def begin(self, config: SpotConfig, around: Surroundings) -> Learner:
        return PlainPrompt(fit(around.source(config.init_prompt), around.num_virtual_tokens), around.rms)


METHOD = Spot()


def nearest(vectors: Tensor, candidates: list[tuple[str, Tensor]]) -> str:
    """The candidate whose mean vector has the largest cosine with the mean of `vectors` [P, H]; equal ones by name."""
    mean = vectors.mean(0)
    likeness = {name: float(F.cosine_similarity(mean, other.mean(0), dim=0)) for name, other in candidates}
    return max(sorted(likeness), key=likeness.__getitem__)
