"""Hostile names, for every parameter of every path; hostile queries; paths that are none."""

from __future__ import annotations

import re

from app.api.auth import ROUTES

SEGMENTS: dict[str, str] = {
    "dots": "%2e%2e",
    "traversal": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "backslashes": "..%5c..%5cqzXq",
    "twice encoded": "%252e%252e%252fqzXq",
    "overlong dots": "%c0%ae%c0%ae",
    "NUL": "qzXq%00b",
    "line break": "qzXq%0d%0aX-Evil:%201",
    "no UTF-8": "qzXq%ff%fe",
    "surrogate": "qzXq%ed%a0%80",
    "emoji": "%F0%9F%98%80qzXq",
    "confusable": "%D0%B5cho-qzXq",  # Cyrillic e
    "full width": "%EF%BD%85cho-qzXq",
    "zero width": "echo%E2%80%8BqzXq",
    "right to left": "%E2%80%AEqzXq",
    "combining": "e%CC%81qzXq",
    "space": "%20",
    "other case": "ECHO",
    "script": "%3Cscript%3EqzXq%3C%2Fscript%3E",
    "query language": "qzXq%27%20OR%201%3d1--",
    "shell": "%24%28qzXq%29",
    "long": "qzXq" * 1250,
    "digits beyond count": "99999999999999999999qzXq",
}

WHOLE: list[str] = [
    "/v1/tasks/../../etc/passwd/generate",
    "/v1/tasks/a..b/generate",
    "/v1/tasks/echo%0a/generate",
    "/v1/tasks/echo@99999999999999999999/generate",
    "/v1/tasks/echo@-1/generate",
    "/v1/tasks/echo@0/generate",
    "/v1/tasks/echo@1e1/generate",
    "/v1/tasks/echo@%D9%A1/generate",
    "/v1/tasks/echo@1@1/generate",
    "/v1/tasks/echo@qzXq/generate",
    "/v1/tasks/echo:prod:prod/generate",
    "/v1/tasks/echo:/generate",
    "/v1/tasks/@1/generate",
    "/v1/tasks/echo;v=1/generate",
    "/v1/tasks//generate",
    "//v1/tasks/echo/generate",
    "/v1//tasks/echo/generate",
    "/v1/tasks/echo/generate/",
    "/V1/TASKS/echo/generate",
    "/v1/tasks/echo/generate%00",
    "/v1/tasks/echo/generate%3Fx=1",
    "/%2e/v1/tasks/echo/generate",
    "/v1/tasks/echo/./generate",
    "/v1/tasks/echo/%67enerate%2f",
    "/v1/tasks/echo/versions",
]

CALLS: list[tuple[str, str]] = [
    ("GET", "/v1/tasks/echo/versions/0"),
    ("GET", "/v1/tasks/echo/versions/-1"),
    ("GET", "/v1/tasks/echo/versions/1.5"),
    ("GET", "/v1/tasks/echo/versions/1e3"),
    ("GET", "/v1/tasks/echo/versions/%D9%A1"),
    ("GET", "/v1/tasks/echo/versions/0x1"),
    ("GET", "/v1/tasks/echo/versions/1_0"),
    ("GET", "/v1/tasks/echo/versions/" + "9" * 5000),
    ("GET", "/v1/tasks/echo/versions?after=-1"),
    ("GET", "/v1/tasks/echo/versions?after=" + "9" * 400),
    ("GET", "/v1/tasks/echo/versions?after=qzXq"),
    ("GET", "/v1/tasks/echo/versions?limit=NaN"),
    ("GET", "/v1/tasks/echo/versions/1/vectors?words=0"),
    ("GET", "/v1/tasks/echo/versions/1/vectors?words=10000000"),
    ("GET", "/v1/tasks/echo/versions/1/vectors?words=qzXq"),
    ("GET", "/v1/tasks?limit=1e9"),
    ("GET", "/v1/tasks?limit=-1"),
    ("GET", "/v1/tasks?limit=0"),
    ("GET", "/v1/tasks?limit=1001"),
    ("GET", "/v1/tasks?limit=%D9%A1"),
    ("GET", "/v1/tasks?limit=true"),
    ("GET", "/v1/tasks?limit="),
    ("GET", "/v1/tasks?limit=10&limit=qzXq"),
    ("GET", "/v1/tasks?after=" + "a" * 500),
    ("GET", "/v1/train?limit=0"),
    ("GET", "/v1/train?limit=99999999999999999999"),
    ("GET", "/v1/train?after=" + "qzXq" * 100),
    ("GET", "/v1/train?after=qzXq%00"),
    ("GET", "/v1/datasets?limit=-5"),
    ("GET", "/v1/train/job-00000000000000000000/events?after=99999999999999999999"),
    ("GET", "/v1/train/job-00000000000000000000/events?after=%D9%A1"),
    ("GET", "/v1/train/job-00000000000000000000/events?after=1-1-1"),
    ("GET", "/v1/train/job-00000000000000000000/events?after=$"),
    ("GET", "/v1/train/job-00000000000000000000/events?after=%2B"),
    ("GET", "/v1/train/job-00000000000000000000/events?after=1%0a"),
    ("GET", "/docs/swagger-ui/..%2f..%2f..%2fmain.py"),
    ("GET", "/docs/swagger-ui/%2e%2e/docs.js%00"),
    ("GET", "/docs/swagger-ui/....//....//main.py"),
    ("GET", "/docs/swagger-ui//etc/passwd"),
    ("GET", "/docs/swagger-ui/" + "qzXq" * 1000),
    ("GET", "/docs/../v1/tasks"),
    ("GET", "/openapi.json/"),
    ("GET", "/openapi.yaml"),
    ("GET", "/.env"),
    ("GET", "/.git/config"),
    ("GET", "/metrics/qzXq"),
    ("GET", "/server-status"),
    ("POST", "/livez"),
    ("DELETE", "/v1/tasks"),
    ("PUT", "/v1/train"),
    ("PATCH", "/v1/tasks/echo"),
]


def with_segment(path: str, segment: str) -> list[str]:
    """A path once for each of its parameters: there the segment, elsewhere an honest value."""
    names = re.findall(r"\{(\w+)\}", path)
    honest = {"number": "1", "alias": "prod"}
    return [
        re.sub(r"\{(\w+)\}", lambda found, one=name: segment if found[1] == one else honest.get(found[1], "echo"), path)
        for name in names
    ]


PARAMETERS: dict[str, tuple[str, str]] = {
    f"{method} {place} {name}": (method, address)
    for method, path in sorted(ROUTES)
    if "{" in path
    for name, segment in SEGMENTS.items()
    for place, address in zip(
        [path.replace("{" + one + "}", "<" + one + ">") for one in re.findall(r"\{(\w+)\}", path)],
        with_segment(path, segment),
        strict=True,
    )
}
