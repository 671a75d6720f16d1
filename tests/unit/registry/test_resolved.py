"""References to several versions: all members in order, all or none, loaded before somebody asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import CapabilityMissing, VersionUnavailable
from app.registry.resolved import mode_of, weights_of
from prompt_store import AliasTarget, Ensemble, InvalidReference, Share
from tests.fakes import FakeBackbone, publish
from tests.registries import Admission, FragileStore, run, running

SPLIT = AliasTarget(split=(Share(version=3, weight=6.0), Share(version=1, weight=2.0)))
ENSEMBLE = AliasTarget(ensemble=Ensemble(members=(2, 3, 1), mode="vote"))


@pytest.fixture
def store(tmp_path: Path) -> FragileStore:
    """`echo` with three versions; `prod` points to the first."""
    store = FragileStore(tmp_path)
    publish(store, FakeBackbone(), "echo", "{text}")
    for template in ("Second: {text}", "Third: {text}"):
        publish(store, FakeBackbone(), "echo", template, alias=None)
    return store


def test_weights_of_a_split_are_parts_of_one_and_others_are_equal() -> None:
    assert (mode_of(SPLIT), weights_of(SPLIT)) == ("split", (0.75, 0.25))
    assert (mode_of(ENSEMBLE), weights_of(ENSEMBLE)) == ("vote", (1 / 3,) * 3)
    assert (mode_of(AliasTarget(version=2)), weights_of(AliasTarget(version=2))) == ("version", (1.0,))


@pytest.mark.parametrize("target", [SPLIT, ENSEMBLE], ids=["split", "ensemble"])
def test_resolve_when_the_alias_points_to_several_gives_all_in_order(
    store: FragileStore, tmp_path: Path, target: AliasTarget
) -> None:
    async def test() -> None:
        async with running(store, tmp_path) as registry:
            await registry.move_alias("echo", "canary", target, expected=0)
            resolved = await registry.resolve("echo:canary")
            assert tuple(prompt.version for prompt in resolved.members) == target.versions
            assert (resolved.mode, resolved.weights) == (mode_of(target), weights_of(target))
            assert tuple(version.number for version in registry.members("echo:canary")) == target.versions
            with pytest.raises(InvalidReference, match="echo@3"):
                await registry.resolve_version("echo:canary")

    run(test())


@pytest.mark.parametrize("target", [SPLIT, ENSEMBLE], ids=["split", "ensemble"])
def test_resolve_when_one_member_cannot_be_loaded_names_it_and_answers_without_none(
    store: FragileStore, tmp_path: Path, target: AliasTarget
) -> None:
    async def test() -> None:
        store.broken.add(3)
        async with running(store, tmp_path) as registry:
            await registry.move_alias("echo", "canary", target, expected=0)
            with pytest.raises(VersionUnavailable, match="echo@3"):
                await registry.resolve("echo:canary")
            assert (await registry.resolve("echo")).members[0].version == 1

    run(test())


def test_start_when_aliases_point_to_several_loads_every_member(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        store.move_alias("echo", "canary", SPLIT, expected=0)
        store.move_alias("echo", "jury", ENSEMBLE, expected=0)
        admission = Admission()
        async with running(store, tmp_path, admission):
            assert sorted(admission.admitted) == ["echo@1", "echo@2", "echo@3"]

    run(test())


def test_move_alias_to_a_version_published_a_moment_ago_sees_it(store: FragileStore, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(store, tmp_path, reconcile_s=60) as registry:
            labels = publish(store, FakeBackbone(), "echo", "{text}?", labels=("a", "b"), alias=None)
            target = AliasTarget(ensemble=Ensemble(members=(1, labels), mode="mean"))
            with pytest.raises(CapabilityMissing, match=f"echo@{labels}") as caught:
                await registry.move_alias("echo", "canary", target, expected=None)
            assert caught.value.param == "ensemble.members.1"

    run(test())
