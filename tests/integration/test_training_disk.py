"""Workers whose disk is full in earnest: the system refuses, nothing is patched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.full_disk import small_disk
from tests.training_site import Installation, assert_one_version, kill

CHECKPOINT_BYTES = 100_000
"""Less than a checkpoint, and more than a prompt of four vectors with its record."""


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    site = Installation(redis_url, tmp_path)
    yield site
    site.close()


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["disk", "file size"])
def test_full_disk_at_every_checkpoint_is_told_and_the_job_succeeds(site: Installation, how: str) -> None:
    before: Sequence[str] = ()
    environment = {}
    if how == "disk":
        before = small_disk(site.folder / "jobs", CHECKPOINT_BYTES // 1024)
    else:
        environment["CHORUS_TEST_FILE_BYTES"] = str(CHECKPOINT_BYTES)
    job_id = site.submit(steps=12)
    site.start_worker(before=before, **environment)
    job = site.wait_for_end(job_id)
    assert_one_version(site, job)
    warnings = [event.message for event in site.story(job_id) if "could not be written" in event.message]
    assert warnings
    assert {message.rpartition(": ")[2] for message in warnings} == {
        "No space left on device" if how == "disk" else "File too large"
    }
    assert not list(site.folder.glob("jobs/**/*.safetensors"))


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["disk", "file size"])
def test_full_disk_at_publish_fails_the_job_as_that_and_the_next_one_publishes(site: Installation, how: str) -> None:
    before: Sequence[str] = ()
    environment = {"CHORUS_TEST_PATIENCE_S": "1", "CHORUS_CHECKPOINT_S": "60"}
    if how == "disk":
        before = small_disk(site.folder / "blobs" / "blobs", 4)
    else:
        environment["CHORUS_TEST_FILE_BYTES"] = "4096"
    job_id = site.submit(steps=4)
    worker = site.start_worker(before=before, **environment)
    job = site.wait_for_end(job_id)
    assert (job.status, job.attempt, job.error and job.error.code) == ("failed", 1, "storage_full")
    assert site.store.find_publication(job_id) is None
    assert list((site.folder / "blobs" / "blobs").iterdir()) == []
    kill(worker)
    again = site.submit(steps=4)
    site.start_worker()
    assert_one_version(site, site.wait_for_end(again))


@pytest.mark.chaos
def test_disk_that_takes_nothing_at_publish_fails_the_job_as_that_and_the_next_one_publishes(
    site: Installation,
) -> None:
    before = small_disk(site.folder / "blobs" / "blobs", 64, read_only=True)
    job_id = site.submit(steps=4)
    worker = site.start_worker(before=before, CHORUS_TEST_PATIENCE_S="1", CHORUS_CHECKPOINT_S="60")
    job = site.wait_for_end(job_id)
    assert job.error is not None
    assert (job.status, job.attempt, job.error.code) == ("failed", 1, "storage_failed")
    assert "Read-only file system" in job.error.message
    assert site.store.find_publication(job_id) is None
    kill(worker)
    again = site.submit(steps=4)
    site.start_worker()
    assert_one_version(site, site.wait_for_end(again))
