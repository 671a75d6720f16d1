"""Whether the versions an alias is to point to can answer here, and together: found out when it moves, not when it
answers. That they exist and are fit to serve is the store's to say, in the same atomic step as the move."""

from __future__ import annotations

from app.backbone import parse_template
from app.errors import CapabilityMissing
from prompt_store import Snapshot
from prompt_store.models import AliasTarget, BackboneRef, Version


def knows(view: Snapshot, task: str, target: AliasTarget) -> bool:
    """Whether `view` has every version of the target."""
    state = view.states.get(task)
    return state is not None and all(number in state.versions for number in target.versions)


def check_target(view: Snapshot, task: str, target: AliasTarget, backbone: BackboneRef) -> None:
    """Raise CapabilityMissing, with the place in the target as `param`, unless all versions are of this backbone and
    read the same fields, and the members of an ensemble answer the same: one set of labels, or all free text.

    A version that `view` does not know is passed over: the store refuses it. Raises TaskNotFound.
    """
    known = view.state(task).versions
    first: Version | None = None
    for place, number in target.places:
        version = known.get(number)
        if version is None:
            continue
        _check_backbone(version, backbone, place)
        first = first or version
        if _fields(version) != _fields(first):
            raise _unlike(version, first, "reads other fields", place)
        if target.ensemble is not None and _labels(version) != _labels(first):
            raise _unlike(version, first, "answers otherwise (its labels, or free text)", place)


def _check_backbone(version: Version, backbone: BackboneRef, place: str) -> None:
    own = version.meta.backbone
    if own.fingerprint != backbone.fingerprint:
        raise CapabilityMissing(
            f"{version.task}@{version.number} belongs to the backbone {own.name} ({own.fingerprint[:12]}); "
            f"this service runs {backbone.name} ({backbone.fingerprint[:12]})",
            param=place,
        )


def _unlike(version: Version, first: Version, what: str, place: str) -> CapabilityMissing:
    pair = f"{version.task}@{version.number} {what} than {first.task}@{first.number}"
    return CapabilityMissing(f"{pair}: they cannot answer the same row", param=place)


def _fields(version: Version) -> frozenset[str]:
    meta = version.meta
    return frozenset(parse_template(meta.template, num_virtual_tokens=meta.num_virtual_tokens).fields)


def _labels(version: Version) -> frozenset[str] | None:
    words = version.meta.verbalizer
    return None if words is None else frozenset(words)
