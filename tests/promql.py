"""What a PromQL expression reads, and whether that exists: its metrics, the labels it asks for and groups by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Scrape = Mapping[str, Mapping[str, frozenset[str]]]
"""Name of a series → its labels → their values."""

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus gives every series of a target."""

OF_PROMETHEUS: Scrape = {"up": {}}
"""Series that Prometheus makes for each target."""

FUNCTIONS_OF_GRAFANA = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}


@dataclass(frozen=True)
class Selector:
    metric: str
    labels: frozenset[str]
    equal: frozenset[tuple[str, str]]
    patterns: frozenset[tuple[str, str]]


def read_scrape(text: str) -> Scrape:
    """Of the text that `/metrics` gives."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return {
        name: {label: frozenset(values) for label, values in labels.items()} for name, labels in found.items()
    } | dict(OF_PROMETHEUS)


def parse(expression: str) -> Any:
    """Raises ValueError for what is no PromQL."""
    for name, value in FUNCTIONS_OF_GRAFANA.items():
        expression = expression.replace(name, value)
    return promql_parser.parse(expression)


def problems(expression: str, scrape: Scrape) -> list[str]:
    """All that is wrong with an expression, given what there is to read."""
    try:
        tree = parse(expression)
    except ValueError as error:
        return [f"no PromQL: {error}"]
    found = [problem for one in selectors(tree) for problem in _missing(one, scrape)]
    for grouping, below in groupings(tree):
        known = TARGET.union(*(scrape.get(one.metric, {}) for one in selectors(below)))
        found += [f"groups by `{label}`, which nothing below has" for label in sorted(grouping - known)]
    return found


def selectors(tree: Any) -> Iterator[Selector]:
    for node in _nodes(tree):
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            yield Selector(
                node.name or "",
                frozenset(one.name for one in matchers),
                frozenset((one.name, one.value) for one in matchers if one.op == promql_parser.MatchOp.Equal),
                frozenset((one.name, one.value) for one in matchers if one.op == promql_parser.MatchOp.Re),
            )


def groupings(tree: Any) -> Iterator[tuple[frozenset[str], Any]]:
    """The labels of each `by (…)` and `on (…)`, and what stands below it."""
    for node in _nodes(tree):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            yield frozenset(node.modifier.labels), node
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            matching = re.search(r"\bon \(([^)]*)\)", str(node.modifier))
            if matching:
                yield frozenset(filter(None, re.split(r",\s*", matching[1]))), node


def _missing(one: Selector, scrape: Scrape) -> list[str]:
    labels = scrape.get(one.metric)
    if labels is None:
        return [f"no series `{one.metric}`"]
    found = [f"`{one.metric}` has no label `{name}`" for name in sorted(one.labels - TARGET - labels.keys())]
    for name, value in sorted(one.equal):
        if name in labels and value not in labels[name]:
            found.append(f"`{one.metric}` has no `{name}` that is `{value}`")
    for name, pattern in sorted(one.patterns):
        if name in labels and not pattern.startswith("$") and not any(re.fullmatch(pattern, v) for v in labels[name]):
            found.append(f"`{one.metric}` has no `{name}` like `{pattern}`")
    return found


def _nodes(tree: Any) -> list[Any]:
    """Every node, selectors within ranges too."""
    found: list[Any] = []
    promql_parser.walk(tree, found.append)
    return found
