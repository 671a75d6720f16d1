"""The registry as the records beside the blobs tell it: for a reader that starts while the metadata server is away.

It is what a rebuild would put into an empty server: every acknowledged write, and none that was undone. Not in it is a
write whose writer died before its records and that the server alone knows; so nobody may follow events from here, and
whoever reaches the server again reads everything.
"""

from __future__ import annotations

import logging

from prompt_store.errors import NotFound
from prompt_store.metadata import Dump
from prompt_store.places import Records
from prompt_store.reconcile import compare
from prompt_store.snapshot import Snapshot, snapshot_of

log = logging.getLogger(__name__)
_ATTEMPTS = 3
_NOTHING = "0"  # as an event id: none is known


def recorded_snapshot(records: Records) -> Snapshot:
    """Everything readable that was ever acknowledged; changes nothing.

    Others may be writing: an alias that was read after the versions may point to one that was not, and then all is read
    again. Records that cannot be trusted are left out and logged, as are aliases that would then point nowhere. Raises
    NotFound when nothing was ever recorded, CorruptRecord, StoreUnavailable.
    """
    for attempt in range(_ATTEMPTS):
        journal = records.read_all()
        if not journal.epoch:
            raise NotFound("nothing has been recorded yet")
        found = compare(journal, Dump(epoch=0, last_event_id=_NOTHING))
        there = {(version.task_id, version.number) for version in found.versions}
        dangling = [
            (task_id, entry)
            for task_id, entries in found.aliases.items()
            for entry in entries
            if not entry.deleted and not there.issuperset((task_id, number) for number in entry.versions)
        ]
        if not dangling or attempt == _ATTEMPTS - 1:
            break
    if journal.unreadable or dangling:
        log.warning("records left out", extra={"unreadable": len(journal.unreadable), "aliases": len(dangling)})
    kept = {
        task_id: tuple(entry for entry in entries if (task_id, entry) not in dangling)
        for task_id, entries in found.aliases.items()
    }
    versions = sorted(found.versions, key=lambda version: version.number)
    entries = tuple(found.entries[task_id] for task_id in found.live)
    return snapshot_of(Dump(journal.epoch, _NOTHING, entries, tuple(versions), kept))
