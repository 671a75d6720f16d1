"""Errors that only the HTTP edge raises, in the same tree as all others, so that one table maps them too.

ChorusError
├── BadRequest            the message itself is malformed (framing, headers)
│   └── InvalidJson       not strict JSON: syntax, NaN, duplicate keys, depth, lone surrogates, numbers out of range
├── Unauthorized          no key, or a wrong, expired or revoked one
├── InsufficientScope     a key that may not do this
│   └── JobQuotaSpent     a key that has started all the jobs it may
├── RateLimited           a key's limit for a minute is reached; carries `retry_after_s`
│   └── JobLimitReached   as many of a key's jobs as may run at once have not ended
├── ForeignOrigin         a web page of another origin wrote here
├── RouteNotFound         no such path
├── MethodNotAllowed      the path exists, the method does not
├── ReadTimeout           the body did not arrive in time
├── UnsupportedMediaType  not the content type the route takes
├── MisdirectedRequest    a host name that this keyless server does not answer to
├── HeadersTooLarge       too many header fields, or too long
├── NotReady              the readiness run failed
├── TooManyConnections    more are open than this replica takes
└── UnsafeExposure        settings that would listen beyond this machine without a key
"""

from __future__ import annotations

from app.errors import ChorusError, Unavailable


class BadRequest(ChorusError):
    code = "bad_request"


class InvalidJson(BadRequest):
    code = "invalid_json"


class Unauthorized(ChorusError):
    code = "unauthorized"


class InsufficientScope(ChorusError):
    code = "insufficient_scope"


class JobQuotaSpent(InsufficientScope):
    code = "job_quota"


class RateLimited(ChorusError):
    code = "rate_limited"
    retry_after_s = 1.0


class JobLimitReached(RateLimited):
    code = "job_limit"


class ForeignOrigin(ChorusError):
    code = "foreign_origin"


class RouteNotFound(ChorusError):
    code = "route_not_found"


class MethodNotAllowed(ChorusError):
    code = "method_not_allowed"


class ReadTimeout(ChorusError):
    code = "read_timeout"


class UnsupportedMediaType(ChorusError):
    code = "unsupported_media_type"


class MisdirectedRequest(ChorusError):
    code = "misdirected_request"


class HeadersTooLarge(ChorusError):
    code = "headers_too_large"


class NotReady(Unavailable):
    code = "not_ready"


class TooManyConnections(Unavailable):
    code = "too_many_connections"


class UnsafeExposure(ChorusError):
    code = "unsafe_exposure"
