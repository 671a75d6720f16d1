"""Bodies and answers of aliases: where a movable name points."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from app.api.schemas.base import Ask, Reply
from app.errors import InvalidRequest
from prompt_store.models import MAX_MEMBERS, MIN_MEMBERS, Alias, AliasTarget, Ensemble, EnsembleMode, Share

VersionNumber = Annotated[int, Field(ge=1, le=999_999_999)]


class ShareBody(Ask):
    """One version of a split; weights count in proportion to their sum."""

    version: VersionNumber
    weight: float = Field(ge=1e-6, le=1e6, allow_inf_nan=False)


class EnsembleBody(Ask):
    """Versions that answer each row together, by vote or by mean probability. The mean of free text is that of the
    distributions of each next token."""

    members: list[VersionNumber] = Field(min_length=MIN_MEMBERS, max_length=MAX_MEMBERS, examples=[[1, 2, 3]])
    mode: EnsembleMode


class AliasBody(Ask):
    """Where an alias points: exactly one of a version, a weighted split of versions and an ensemble."""

    version: VersionNumber | None = None
    split: list[ShareBody] | None = Field(None, min_length=MIN_MEMBERS, max_length=MAX_MEMBERS)
    ensemble: EnsembleBody | None = None

    def target(self) -> AliasTarget:
        """As the store keeps it, the weights of a split summing to 1. Raises InvalidRequest."""
        given = [name for name in ("version", "split", "ensemble") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            message = f"an alias points to exactly one of version, split and ensemble, not to {found}"
            raise InvalidRequest(message, param=given[-1] if given else "version")
        if self.split is not None:
            _check_distinct([share.version for share in self.split], "split.{}.version")
            return AliasTarget(split=_shares(self.split))
        if self.ensemble is not None:
            _check_distinct(self.ensemble.members, "ensemble.members.{}")
            return AliasTarget(ensemble=Ensemble(members=tuple(self.ensemble.members), mode=self.ensemble.mode))
        return AliasTarget(version=self.version)


def _check_distinct(numbers: list[int], place: str) -> None:
    for index, number in enumerate(numbers):
        if number in numbers[:index]:
            raise InvalidRequest(f"version {number} is in it already", param=place.format(index))


def _shares(split: list[ShareBody]) -> tuple[Share, ...]:
    """Weights as parts of 1 in twelve digits, so that 0.7 stays 0.7."""
    total = math.fsum(share.weight for share in split)
    return tuple(Share(version=share.version, weight=float(f"{share.weight / total:.12g}")) for share in split)


class AliasView(Reply):
    """An alias: one of `version`, `split` and `ensemble`, the others null. `revision` is what `If-Match` compares; it
    is also the answer's `ETag`."""

    task: str
    name: str
    version: int | None = None
    split: list[Share] | None = None
    ensemble: Ensemble | None = None
    revision: int
    updated_at: float

    @classmethod
    def of(cls, alias: Alias) -> AliasView:
        return cls.model_validate(alias.model_dump())


class SplitTarget(Reply):
    """Several versions, one of which is drawn for each row by weight."""

    split: list[Share]


class EnsembleTarget(Reply):
    """Several versions that answer each row together."""

    ensemble: Ensemble


def target_view(target: AliasTarget) -> int | SplitTarget | EnsembleTarget:
    """Where an alias points in a list of many: a version is its number."""
    if target.ensemble is not None:
        return EnsembleTarget(ensemble=target.ensemble)
    if target.split is not None:
        return SplitTarget(split=list(target.split))
    return target.versions[0]
