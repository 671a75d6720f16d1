"""Learning prompts: data sets, jobs, the worker and its trainer. Imports nothing of HTTP and nothing of the engine.

Names load on first use, so that the worker process, which computes nothing itself, starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.training.data import RowSet, parse_rows
    from app.training.datasets import Dataset, DatasetStore
    from app.training.job import Job, JobError, JobEvent, JobResult, Progress
    from app.training.jobs import JobStore
    from app.training.requests import TrainRequest

__all__ = [
    "Dataset",
    "DatasetStore",
    "Job",
    "JobError",
    "JobEvent",
    "JobResult",
    "JobStore",
    "Progress",
    "RowSet",
    "TrainRequest",
    "parse_rows",
]

_HOMES = {
    "Dataset": "datasets",
    "DatasetStore": "datasets",
    "Job": "job",
    "JobError": "job",
    "JobEvent": "job",
    "JobResult": "job",
    "JobStore": "jobs",
    "Progress": "job",
    "RowSet": "data",
    "TrainRequest": "requests",
    "parse_rows": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
