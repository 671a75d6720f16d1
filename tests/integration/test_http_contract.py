"""The contract against the service: schemathesis asks every operation, and every answer must be one that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.engine import Status, events, from_schema

from tests.fakes import World, make_world
from tests.live import HANG_S, Live, serving

KEY = "a-key-of-some-length"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "ignored_auth",
    "unsupported_method",
    "allow_header_conformance",
)
KNOWN: dict[str, list[str | int]] = {
    "path.task": ["echo", "nli", "sentiment"],
    "path.ref": ["echo", "sentiment@1", "nli:prod"],
    "path.model": ["echo", "sentiment@1", "nli:prod"],
    "path.number": [1],
    "path.alias": ["prod", "canary"],
    "body.model": ["echo", "sentiment"],
    "body.version": [1],
}
"""What there is, for a part of the calls: chance alone would seldom come behind a 404."""
ROWS = [{"text": f"{label} number {n}", "label": label} for n in range(10) for label in ("good", "bad")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url, api_key=KEY)


@pytest.fixture(scope="module")
def live(world: World) -> Iterator[Live]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, headers=bearer(), timeout=HANG_S) as client:
        client.post("/v1/train", json={"task": "trained", "training_data": {"inline": ROWS}}).raise_for_status()
        yield live


def bearer() -> dict[str, str]:
    return {"authorization": f"Bearer {KEY}"}


@dataclass
class Asked:
    """What became of a run."""

    operations: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return self.statuses.total()

    def see(self, event: events.EngineEvent) -> None:
        if isinstance(event, events.ScenarioFinished):
            self._see_scenario(event)
        elif isinstance(event, events.NonFatalError):
            self.violations.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            self.violations.append(repr(event.exception))

    def _see_scenario(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for case, call in recorder.interactions.items():
            self.operations[recorder.cases[case].value.operation.label] += 1
            self.statuses[call.response.status_code if call.response is not None else 0] += 1
        for case, checks in recorder.checks.items():
            for check in checks:
                if check.status is Status.FAILURE:
                    assert check.failure_info is not None
                    failure, request = check.failure_info.failure, recorder.interactions[case].request
                    sent = f"{request.method} {request.uri} {request.headers} {(request.body or b'')[:500]!r}"
                    self.violations.append(f"{check.name} {failure.title}: {failure.message[:500]} {sent}")


def ask_everything(live: Live, *, phases: tuple[str, ...], examples: int, seed: int) -> Asked:
    """Run schemathesis over all operations; `examples` bounds the random calls of each operation and kind of data."""
    found = Asked()
    config = schemathesis.Config.from_dict(configuration(phases, examples, seed))
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json", config=config, headers=bearer())
    for event in from_schema(schema).execute():
        found.see(event)
    return found


def configuration(phases: tuple[str, ...], examples: int, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "continue-on-failure": True,
        "request-timeout": HANG_S,
        "warnings": False,
        "cache": {"enabled": False},
        "auth": {"openapi": {"key": {"bearer": KEY}}},
        "generation": {
            "max-examples": examples,
            "no-shrink": True,
            "database": "none",
            "with-security-parameters": False,  # `ignored_auth` asks without the key by itself
        },
        "dictionaries": {name: {"values": values} for name, values in KNOWN.items()},
        "parameters": {name: {"dictionary": name, "probability": 0.6} for name in KNOWN},
        "phases": {name: {"enabled": name in phases} for name in PHASES},
        "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
    }


def check_run(live: Live, found: Asked) -> None:
    assert found.violations == []
    assert 0 not in found.statuses, "a call without an answer"
    with httpx.Client(base_url=live.url, headers=bearer(), timeout=HANG_S) as client:
        paths = client.get("/openapi.json").json()["paths"]
        operations = {f"{method.upper()} {path}" for path, calls in paths.items() for method in calls}
        assert set(found.operations) == operations
        assert client.get("/readyz").status_code == 200


def test_every_answer_is_one_that_the_contract_names(
    live: Live, record_property: Callable[[str, object], None]
) -> None:
    found = ask_everything(live, phases=("examples", "fuzzing"), examples=6, seed=1)
    record_property("told", f"{found.calls} calls of {len(found.operations)} operations")
    check_run(live, found)
    assert found.calls > 200


@pytest.mark.chaos
def test_every_answer_to_very_many_calls_is_one_that_the_contract_names(
    live: Live, record_property: Callable[[str, object], None]
) -> None:
    found = ask_everything(live, phases=PHASES, examples=80, seed=2)
    record_property("told", f"{found.calls} calls of {len(found.operations)} operations")
    check_run(live, found)
    assert found.calls > 4000
