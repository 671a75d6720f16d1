"""What every metadata server promises of aliases that point to several versions: weighted splits and ensembles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_store import (
    PROD,
    Alias,
    AliasTarget,
    Conflict,
    Ensemble,
    InvalidReference,
    PromptStore,
    RevisionMismatch,
    Share,
    Snapshot,
    VersionInUse,
    VersionNotFound,
    parse_ref,
)
from prompt_store.testing import example_meta, example_tensors, with_versions
from tests.contract.conftest import Server


def split(**weights: float) -> AliasTarget:
    """`split(v1=0.9, v2=0.1)`."""
    return AliasTarget(split=tuple(Share(version=int(name[1:]), weight=weight) for name, weight in weights.items()))


def ensemble(*members: int, mode: str = "mean") -> AliasTarget:
    return AliasTarget(ensemble=Ensemble(members=members, mode=mode))  # type: ignore[arg-type]


SPLIT = split(v3=0.7, v1=0.30000000000000004)
VOTE, MEAN = ensemble(1, 2, 3, mode="vote"), ensemble(2, 1)
SEVERAL = pytest.mark.parametrize("target", [SPLIT, VOTE, MEAN], ids=["split", "vote", "mean"])


@pytest.fixture
def published(store: PromptStore) -> PromptStore:
    """Twelve versions of one task; `prod` points to the last at revision 12."""
    return with_versions(store, 12)


def target_of(alias: Alias) -> AliasTarget:
    return AliasTarget(version=alias.version, split=alias.split, ensemble=alias.ensemble)


@SEVERAL
def test_move_alias_to_several_versions_keeps_them_in_order_and_to_the_last_digit(
    published: PromptStore, target: AliasTarget
) -> None:
    alias = published.move_alias("sentiment", PROD, target, expected=12)
    assert (target_of(alias), alias.revision) == (target, 13)
    assert published.get_alias("sentiment", PROD) == alias
    event = published.events()[-1]
    assert (event.kind, event.alias, event.version) == ("alias", PROD, None)


@SEVERAL
def test_move_alias_back_to_one_version_leaves_nothing_of_the_others(
    published: PromptStore, target: AliasTarget
) -> None:
    published.move_alias("sentiment", PROD, target, expected=None)
    alias = published.move_alias("sentiment", PROD, 2, expected=13)
    assert target_of(alias) == AliasTarget(version=2)
    assert published.events()[-1].version == 2


def test_move_alias_between_kinds_goes_by_compare_and_set(published: PromptStore) -> None:
    published.move_alias("sentiment", "canary", SPLIT, expected=0)
    with pytest.raises(RevisionMismatch):
        published.move_alias("sentiment", "canary", VOTE, expected=0)
    assert published.move_alias("sentiment", "canary", VOTE, expected=1).revision == 2
    published.delete_alias("sentiment", "canary", expected=2)
    assert published.move_alias("sentiment", "canary", MEAN, expected=0).revision == 3


def test_move_alias_of_all_kinds_from_many_threads_lets_one_win_each_revision(published: PromptStore) -> None:
    def move(target: AliasTarget) -> AliasTarget | None:
        try:
            return target_of(published.move_alias("sentiment", PROD, target, expected=12))
        except RevisionMismatch:
            return None

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(move, [SPLIT, VOTE, MEAN, AliasTarget(version=4)] * 3))
    winners = [target for target in won if target is not None]
    assert winners == [target_of(published.get_alias("sentiment", PROD))]
    assert published.fsck().problems == ()


@pytest.mark.parametrize(
    ("target", "place"),
    [(split(v1=1, v99=1), "split.1.version"), (ensemble(99, 1), "ensemble.members.0")],
)
def test_move_alias_when_a_member_is_not_there_names_its_place(
    published: PromptStore, target: AliasTarget, place: str
) -> None:
    with pytest.raises(VersionNotFound, match="99") as caught:
        published.move_alias("sentiment", PROD, target, expected=None)
    assert caught.value.param == place
    assert published.get_alias("sentiment", PROD).version == 12


@pytest.mark.parametrize("state", ["retired", "quarantined"])
def test_move_alias_when_a_member_is_not_fit_names_its_place(published: PromptStore, state: str) -> None:
    published.set_state("sentiment", 2, state)  # type: ignore[arg-type]
    with pytest.raises(Conflict, match=f"sentiment@2 is {state}") as caught:
        published.move_alias("sentiment", PROD, VOTE, expected=None)
    assert caught.value.param == "ensemble.members.1"
    with pytest.raises(Conflict) as caught:
        published.move_alias("sentiment", PROD, split(v2=1, v3=1), expected=None)
    assert caught.value.param == "split.0.version"


@SEVERAL
def test_retire_when_a_version_is_one_of_several_is_refused(published: PromptStore, target: AliasTarget) -> None:
    published.move_alias("sentiment", PROD, target, expected=None)
    for number in target.versions:
        with pytest.raises(VersionInUse, match="sentiment:prod"):
            published.retire_version("sentiment", number)
    published.move_alias("sentiment", PROD, 12, expected=None)
    for number in target.versions:
        assert published.retire_version("sentiment", number).state == "retired"


def test_retire_looks_at_whole_numbers_and_not_at_weights(published: PromptStore) -> None:
    published.move_alias("sentiment", PROD, split(v1=3.5, v12=2), expected=None)
    published.move_alias("sentiment", "canary", ensemble(1, 12), expected=None)
    for free in (2, 3, 5):
        assert published.retire_version("sentiment", free).state == "retired"
    for used in (1, 12):
        with pytest.raises(VersionInUse):
            published.retire_version("sentiment", used)


def test_quarantine_when_a_version_is_one_of_several_takes_effect(published: PromptStore) -> None:
    """Quarantine takes a bad version out of service at once; an alias that mentions it answers with an error."""
    published.move_alias("sentiment", PROD, VOTE, expected=None)
    assert published.set_state("sentiment", 2, "quarantined").state == "quarantined"
    assert target_of(published.get_alias("sentiment", PROD)) == VOTE


@SEVERAL
def test_resolve_when_an_alias_points_to_several_says_which(published: PromptStore, target: AliasTarget) -> None:
    published.move_alias("sentiment", "canary", target, expected=0)
    snapshot = published.snapshot()
    assert snapshot.target(parse_ref("sentiment:canary")).versions == target.versions
    assert snapshot.target(parse_ref("sentiment@2")) == AliasTarget(version=2)
    for resolve in (published.resolve, snapshot.resolve):
        with pytest.raises(InvalidReference, match=f"sentiment@{target.versions[1]}"):
            resolve(parse_ref("sentiment:canary"))
        assert resolve(parse_ref("sentiment")).number == 12


def test_publish_when_the_alias_is_a_split_points_it_to_the_new_version(published: PromptStore) -> None:
    published.move_alias("sentiment", PROD, SPLIT, expected=None)
    meta = example_meta()
    done = published.publish(
        task="sentiment", meta=meta, tensors=example_tensors(meta, 50), publication="late", alias_revision=13
    )
    assert (done.version.number, done.alias and target_of(done.alias)) == (13, AliasTarget(version=13))


def test_rebuild_when_the_server_forgot_brings_back_every_kind(published: PromptStore, server: Server) -> None:
    for name, target in (("canary", SPLIT), ("jury", VOTE), ("choir", MEAN), ("gone", MEAN)):
        published.move_alias("sentiment", name, target, expected=0)
    published.delete_alias("sentiment", "gone", expected=1)
    before = published.list_aliases("sentiment")
    assert len(before) == 4
    assert published.fsck().problems == ()
    server.forget()
    assert published.rebuild().ok
    assert published.list_aliases("sentiment") == before
    assert published.fsck().problems == ()
    assert published.move_alias("sentiment", "gone", SPLIT, expected=0).revision == 2
    with pytest.raises(VersionInUse):
        published.retire_version("sentiment", 3)


def test_rebuild_when_the_server_went_back_brings_forward_where_an_alias_points(
    published: PromptStore, server: Server
) -> None:
    published.move_alias("sentiment", "canary", SPLIT, expected=0)
    old = server.save()
    published.move_alias("sentiment", "canary", split(v3=0.6, v1=0.4), expected=1)
    before = published.list_aliases("sentiment")
    server.put_back(old)
    assert published.rebuild().ok
    assert published.list_aliases("sentiment") == before


def test_manifest_holds_every_kind(published: PromptStore, tmp_path: Path) -> None:
    published.move_alias("sentiment", "canary", SPLIT, expected=0)
    published.move_alias("sentiment", "jury", VOTE, expected=0)
    snapshot = published.snapshot()
    assert list(snapshot.aliases) == published.list_aliases("sentiment")
    snapshot.save(tmp_path / "manifest")
    loaded = Snapshot.load(tmp_path / "manifest")
    assert list(loaded.aliases) == published.list_aliases("sentiment")
