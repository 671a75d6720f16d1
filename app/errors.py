"""Errors of the service, each with a stable `code`. They know no HTTP: `app/api/errors.py` maps them to a status.

ChorusError
├── InvalidRequest             the request can never work as it is
│   ├── InvalidTemplate        slots, fields or braces of a template
│   ├── InvalidVerbalizer      label words that collide, are empty, or do not fit the labels
│   ├── InvalidDataset         carries `row`, the line of the file or the index in the list, from 1
│   ├── InvalidPrompt          tensors or metadata that do not fit the backbone
│   ├── Quarantined            the model failed on this very input, again and again
│   ├── ContextTooLong         prompt + text + new tokens exceed the context; the message names all three
│   ├── CapabilityMissing      this backbone or engine cannot do what is asked
│   └── SweepTooLarge          more combinations than a sweep may have
├── NotFound
│   ├── DatasetNotFound
│   └── JobNotFound
├── Conflict                   a retry of the same call will not help
│   ├── IdempotencyConflict    same key, other body
│   └── JobEnded               the job can no longer be cancelled
├── TooLarge                   a body or a field over its limit
├── Overloaded                 the bounded queue is full; carries `retry_after_s`
├── Unavailable                carries `retry_after_s`
│   ├── Draining               this replica is stopping
│   │   └── CutOff             … and did, while this request was being answered
│   ├── StoreDown              the registry cannot be written or read now
│   └── VersionUnavailable     a version exists but failed verification here
├── DeadlineExceeded           `timeout_s` ran out
├── RequestCancelled           the caller went away or cancelled
├── UnsupportedBackbone        a model that is refused, with the reason
├── TracingUnavailable         a collector is named, and what talks to it is not installed
└── EngineFailure              our fault: a row failed in the model
"""

from __future__ import annotations


class ChorusError(Exception):
    """Base of all errors of the service: `message` for people, `param` names the field or row it is about."""

    code = "internal_error"
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidRequest(ChorusError):
    code = "invalid_request"


class InvalidTemplate(InvalidRequest):
    code = "invalid_template"


class InvalidVerbalizer(InvalidRequest):
    code = "invalid_verbalizer"


class InvalidDataset(InvalidRequest):
    code = "invalid_dataset"

    def __init__(self, message: str, *, row: int | None = None, param: str | None = None) -> None:
        where = f"row {row}: " if row is not None else ""
        super().__init__(where + message, param=param if param is not None else (f"row {row}" if row else None))
        self.row = row


class InvalidPrompt(InvalidRequest):
    code = "invalid_prompt"


class ContextTooLong(InvalidRequest):
    code = "context_too_long"


class CapabilityMissing(InvalidRequest):
    code = "capability_missing"


class SweepTooLarge(InvalidRequest):
    code = "sweep_too_large"


class Quarantined(InvalidRequest):
    code = "quarantined"


class NotFound(ChorusError):
    code = "not_found"


class DatasetNotFound(NotFound):
    code = "dataset_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class Conflict(ChorusError):
    code = "conflict"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class JobEnded(Conflict):
    code = "job_ended"


class TooLarge(ChorusError):
    code = "too_large"


class Overloaded(ChorusError):
    code = "overloaded"
    retry_after_s = 1.0


class Unavailable(ChorusError):
    code = "unavailable"
    retry_after_s = 1.0


class Draining(Unavailable):
    code = "draining"


class CutOff(Draining):
    code = "cut_off"


class StoreDown(Unavailable):
    code = "store_unavailable"


class VersionUnavailable(Unavailable):
    code = "version_unavailable"


class DeadlineExceeded(ChorusError):
    code = "deadline_exceeded"


class RequestCancelled(ChorusError):
    code = "cancelled"


class UnsupportedBackbone(ChorusError):
    code = "unsupported_backbone"


class TracingUnavailable(ChorusError):
    code = "tracing_unavailable"


class EngineFailure(ChorusError):
    code = "engine_failure"
