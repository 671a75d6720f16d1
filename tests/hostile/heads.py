"""Hostile header fields on honest requests: those that must be refused, and those that must mean nothing."""

from __future__ import annotations

import gzip
import zlib

GENERATE = "/v1/tasks/echo/generate"
BODY = b'{"input": "x"}'
JSON = ("content-type", "application/json")
EVENTS = "/v1/train/job-00000000000000000000/events"
ALIAS = "/v1/tasks/echo/aliases/prod"
MOVE = b'{"version": 1}'

Call = tuple[str, str, list[tuple[str, str]], bytes]

REFUSED: dict[str, tuple[int, Call]] = {
    **{
        f"content type {kind or 'empty'}"[:60]: (415, ("POST", GENERATE, [("content-type", kind)], BODY))
        for kind in (
            "",
            "text/plain",
            "text/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=qzXq",
            "application/jsonqzXq",
            "application/json/qzXq",
            "application/json, text/plain",
            "text/plain; application/json",
            "application/ json",
            "application/json\u00a0",
            "application/octet-stream",
            "application/msgpack",
            "application/xml",
            "image/svg+xml",
            "*/*",
            "qzXq" * 1000,
        )
    },
    "no content type": (415, ("POST", GENERATE, [], BODY)),
    "data set of JSON": (415, ("PUT", "/v1/datasets/qzxq", [JSON], b"{}")),
    "data set of a page": (415, ("PUT", "/v1/datasets/qzxq", [("content-type", "text/html")], b"<b>qzXq</b>")),
    **{
        f"body in {name}": (415, ("POST", GENERATE, [JSON, ("content-encoding", name)], packed))
        for name, packed in {
            "gzip": gzip.compress(BODY),
            "deflate": zlib.compress(BODY),
            "br": b"\x0b\x06\x80" + BODY + b"\x03",
            "zstd": b"\x28\xb5\x2f\xfd" + BODY,
            "identity, gzip": gzip.compress(BODY),
            "gzip, gzip": gzip.compress(gzip.compress(BODY)),
            "qzXq": BODY,
            "x-gzip": gzip.compress(b" " * (50 << 20)),
        }.items()
    },
    **{
        f"host {host!r}": (421, ("GET", "/v1/tasks", [("host", host)], b""))
        for host in (
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1@evil.example",
            "evil.example#127.0.0.1",
            "qzXq",
            "[::1].evil.example",
            "0x7f.1.qzXq",
        )
    },
    **{
        f"origin {origin}": (403, ("PUT", "/v1/tasks/qzxq", [JSON, ("origin", origin)], b"{}"))
        for origin in (
            "null",
            "https://evil.example",
            "http://127.0.0.1.evil.example",
            "http://127.0.0.1@evil.example",
            "file://",
            "qzXq",
            "chrome-extension://qzXq",
        )
    },
    **{
        f"if-match {tag}"[:60]: (422, ("PUT", ALIAS, [JSON, ("if-match", tag)], MOVE))
        for tag in ("qzXq", "3", 'W/"3"', '"0"', '"03"', '"-1"', '"1", "2"', "*", '"' + "9" * 30 + '"', '"\u00b2"', "")
    },
    **{
        f"if-none-match {tag}": (422, ("PUT", ALIAS, [JSON, ("if-none-match", tag)], MOVE))
        for tag in ("qzXq", '"1"', "**", "")
    },
    "both preconditions": (422, ("PUT", ALIAS, [JSON, ("if-match", '"1"'), ("if-none-match", "*")], MOVE)),
    "two tags in two lines": (422, ("PUT", ALIAS, [JSON, ("if-match", '"1"'), ("if-match", '"2"')], MOVE)),
    **{
        f"event id {value}"[:60]: (422, ("GET", EVENTS, [("last-event-id", value)], b""))
        for value in ("qzXq", "$", "+", "-1", "1-", "99999999999999999999", "1-1-1", "\u00b9", "0 0")
    },
    "event id of a stream": (422, ("GET", EVENTS, [("last-event-id", "qzXq"), ("accept", "text/event-stream")], b"")),
    **{
        f"idempotency key {name}": (422, ("POST", "/v1/train", [JSON, ("idempotency-key", value)], TRAIN))
        for TRAIN in [b'{"task": "t", "training_data": {"inline": [{"text": "x", "label": "a"}]}}']
        for name, value in {
            "empty": "",
            "long": "qzXq" * 64 + "x",
            "with a space": "qzXq qzXq",
            "of no ASCII": "\u00fcqzXq",
        }.items()
    },
    "hundred and one fields": (431, ("GET", "/v1/tasks", [(f"x-{n}", "qzXq") for n in range(101)], b"")),
    "seventeen kilobytes of one field": (431, ("GET", "/v1/tasks", [("x", "qzXq" * 4300)], b"")),
    "seventeen kilobytes of cookies": (431, ("GET", "/v1/tasks", [("cookie", "q=zXq;" * 200)] * 15, b"")),
    "long name of a field": (431, ("GET", "/v1/tasks", [("x" * 17_000, "y")], b"")),
    "override to a method": (405, ("PATCH", "/v1/tasks/echo", [("x-http-method-override", "DELETE")], b"")),
}

IGNORED: dict[str, list[tuple[str, str]]] = {
    "method override": [("x-http-method-override", "DELETE")],
    "method": [("x-http-method", "DELETE"), ("x-method-override", "DELETE")],
    "another address": [("x-original-url", "/v1/tasks/nli"), ("x-rewrite-url", "/v1/tasks/nli")],
    "another client": [("x-forwarded-for", "10.0.0.1, qzXq"), ("x-real-ip", "qzXq"), ("forwarded", "for=qzXq")],
    "another host": [("x-forwarded-host", "evil.example"), ("x-forwarded-proto", "https")],
    "range": [("range", "bytes=0-1")],
    "range turned round": [("range", "bytes=5-1")],
    "thousand ranges": [("range", "bytes=" + ",".join(f"{n}-{n}" for n in range(1000)))],
    "range of nothing": [("range", "qzXq"), ("if-range", "qzXq")],
    "request id of no form": [("x-request-id", "qzXq\u00fc <script>")],
    "long request id": [("x-request-id", "qzXq" * 100)],
    "trace of no form": [("traceparent", "00-qzXq"), ("tracestate", "qzXq"), ("baggage", "qzXq=qzXq")],
    "cookies": [("cookie", "session=qzXq; __proto__=1")],
    "languages": [("accept-language", "qzXq;q=" + "9" * 200)],
    "accept": [("accept", "qzXq/qzXq;q=qzXq, */*;q=-1")],
    "encodings": [("accept-encoding", "qzXq;q=NaN, gzip;q=1e999")],
    "charset": [("accept-charset", "utf-7")],
    "dates": [("if-modified-since", "qzXq"), ("date", "qzXq")],
    "tags": [("if-match", '"qzXq"'), ("if-none-match", '"qzXq"')],
    "hop by hop": [("te", "trailers, qzXq"), ("trailer", "authorization"), ("keep-alive", "timeout=-1")],
    "proxy": [("proxy-authorization", "Basic cXpYcTpxelhx"), ("proxy", "http://evil.example")],
    "cache": [("pragma", "qzXq"), ("cache-control", "only-if-cached, max-age=qzXq")],
    "upgrade to h2c": [("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "qzXq")],
    "upgrade to a websocket": [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ],
    "expectation of something": [("expect", "qzXq")],
    "origin of another page": [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")],
    "ninety fields": [(f"x-{n}", "qzXq") for n in range(90)],
}
