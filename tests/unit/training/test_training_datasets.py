"""Uploaded data sets: content-addressed, found by name, not lost with Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from app.errors import DatasetNotFound, InvalidDataset, InvalidRequest, StoreDown
from app.training.connection import connect
from app.training.datasets import DatasetStore
from prompt_store import ObjectStore, StoreUnavailable

CSV = b"text,label\na,x\nb,y\nc,x\nd,y\n"


def test_put_describes_the_data(datasets: DatasetStore) -> None:
    found = datasets.put("pets", CSV, "text/csv")
    assert (found.name, found.format, found.form, found.rows) == ("pets", "csv", "label", 4)
    assert (found.fields, found.labels, found.size_bytes) == (("text",), {"x": 2, "y": 2}, len(CSV))
    assert datasets.get("pets") == found


def test_same_bytes_have_the_same_digest_and_one_file(datasets: DatasetStore, tmp_path: Path) -> None:
    assert datasets.put("a", CSV).digest == datasets.put("b", CSV).digest
    assert len(list((tmp_path / "datasets").glob("*.rows"))) == 1


def test_bad_rows_leave_no_trace(datasets: DatasetStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match="row 6"):
        datasets.put("bad", CSV + b"e\n")
    with pytest.raises(DatasetNotFound):
        datasets.get("bad")
    assert not (tmp_path / "datasets").exists()


def test_list_goes_page_by_page_in_the_order_of_names(datasets: DatasetStore) -> None:
    for name in ("c", "a", "b"):
        datasets.put(name, CSV)
    first, more = datasets.list(limit=2)
    assert ([dataset.name for dataset in first], more) == (["a", "b"], True)
    rest, more = datasets.list(after="b", limit=2)
    assert ([dataset.name for dataset in rest], more) == (["c"], False)
    assert datasets.list(after="c") == ((), False)


def test_dataset_survives_the_loss_of_redis(datasets: DatasetStore, client: redis.Redis) -> None:
    kept = datasets.put("kept", CSV)
    client.flushall()
    assert datasets.get("kept") == kept
    assert [dataset.name for dataset in datasets.list()[0]] == ["kept"]


@pytest.mark.parametrize("name", ["../x", "X", "", "a" * 64, "a/b", "a\n", "ä", "\ud800"])
def test_bad_name_is_refused(datasets: DatasetStore, name: str) -> None:
    with pytest.raises(InvalidRequest):
        datasets.put(name, CSV)
    with pytest.raises(DatasetNotFound):
        datasets.get(name)


def test_redis_out_of_reach_is_reported_as_such(tmp_path: Path) -> None:
    with connect(f"unix://{tmp_path}/nothing") as client, pytest.raises(StoreDown):
        DatasetStore(client, tmp_path).get("a")


def test_objects_make_data_of_one_machine_readable_on_another(client: redis.Redis, tmp_path: Path) -> None:
    objects = ObjectStore(f"memory://{tmp_path.name.replace('_', '-').lower()}")
    here, there = (DatasetStore(client, tmp_path / name, objects=objects) for name in ("here", "there"))
    here.put("pets", CSV)
    assert len(there.read(there.pin("pets")).examples) == 4
    inline = here.keep_inline([{"text": text, "label": "xy"[text > "b"]} for text in "abcd"])
    assert len(there.read(inline).examples) == 4
    client.flushall()
    assert there.get("pets").rows == 4  # the record of a name, too
    with pytest.raises(DatasetNotFound):
        there.get("nobody")
    here.put("pets", CSV + b"e,y\n")
    client.flushall()
    assert there.get("pets").rows == 5


def test_objects_that_are_out_of_reach_refuse_an_upload_and_keep_no_name(
    client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailable("object store: away")

    store = DatasetStore(client, tmp_path / "here", objects=ObjectStore("memory://away"))
    monkeypatch.setattr(ObjectStore, "put", refuse)
    with pytest.raises(StoreUnavailable):
        store.put("pets", CSV)
    assert store.list() == ((), False)
