"""A measured load for people: tables within 80 columns. The document they show is what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.cli.output import Output

NAME_CELLS = 26
TASKS_SHOWN = 12
BUSY = 0.5  # share of a core from which the load generator is named as a reason to doubt

Document = Mapping[str, Any]


def show(found: Document, out: Output) -> None:
    """Print a whole report."""
    for line in _head(found):
        out.say(line)
    _section(out, ("THROUGHPUT", "PER SECOND", "TOTAL"), _throughput(found))
    _section(out, ("LATENCY, ms", "P50", "P90", "P99", "MAX"), _latencies(found["latency_s"]))
    if found["service"] is not None:
        _section(out, ("ENGINE", "PREFILL", "DECODE"), _engine(found["service"]))
    if len(found["tasks"]) > 1:
        _section(out, ("TASK", "ROWS", "FAILED", "P50 ms", "P99 ms"), _tasks(found["tasks"]))
    out.say("")
    for line in _remarks(found):
        out.say(line)


def describe(load: Document) -> str:
    """The load in one line."""
    tasks = load["tasks"]
    rows = f"{load['rows_per_request']} rows a request" if load["rows_per_request"] > 1 else "1 row a request"
    way = (
        f"{load['clients']} clients in a closed loop"
        if load["rate_per_s"] is None
        else f"open loop of {load['rate_per_s']:g} requests a second"
    )
    return f"{_count(len(tasks), 'task')}, {way}, {rows}, {'streamed' if load['stream'] else 'not streamed'}"


def _section(out: Output, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    out.say("")
    head, *numbers = columns
    padded = [[str(name).ljust(NAME_CELLS), *cells] for name, *cells in rows]
    out.table([head, *(name.rjust(9) for name in numbers)], padded, right=[name.rjust(9) for name in numbers])


def _head(found: Document) -> Iterator[str]:
    backbone = found["backbone"]
    if backbone:
        yield f"{backbone.get('name')}, {backbone.get('dtype')} on {backbone.get('device')}, at {found['url']}"
    else:
        yield str(found["url"])
    yield f"{describe(found['load'])}; {found['elapsed_s']:.1f} s"


def _throughput(found: Document) -> list[list[Any]]:
    requests, rows, tokens = found["requests"], found["rows"], found["generated_tokens"]
    shown = [
        ["requests answered", _number(requests["per_s"]), f"{requests['answered']:,}"],
        ["rows answered", _number(rows["per_s"]), f"{rows['answered']:,}"],
    ]
    if tokens["total"]:
        shown.append(["tokens generated", _number(tokens["per_s"]), f"{tokens['total']:,}"])
    return shown


def _latencies(found: Document) -> list[list[Any]]:
    names = {"first_token": "first token", "inter_token": "between tokens", "end_to_end": "whole request"}
    return [
        [text, *(_ms(found[name], part) for part in ("p50", "p90", "p99", "max"))]
        for name, text in names.items()
        if found[name] is not None
    ]


def _engine(found: Document) -> list[list[Any]]:
    prefill, decode = found["prefill"], found["decode"]
    return [
        ["steps", f"{prefill['steps']:,}", f"{decode['steps']:,}"],
        ["rows a step", _number(prefill["rows_per_step"]), _number(decode["rows_per_step"])],
        ["different prompts a step", _number(prefill["prompts_per_step"]), _number(decode["prompts_per_step"])],
        ["tokens a step", _number(found["prompt_tokens_per_prefill_step"]), _number(decode["rows_per_step"])],
        ["padding", _percent(found["padding_share"]), None],
        ["prompt cache hits", _percent(found["prefix_cache_hit_rate"]), None],
        ["mean wait in the queue", _mean_ms(found["queue_time_mean_s"]), None],
    ]


def _tasks(found: Sequence[Document]) -> list[list[Any]]:
    shown = [
        [
            one["task"],
            f"{one['rows']:,}",
            f"{one['failed']:,}",
            _ms(one["end_to_end_s"], "p50"),
            _ms(one["end_to_end_s"], "p99"),
        ]
        for one in found[:TASKS_SHOWN]
    ]
    rest = found[TASKS_SHOWN:]
    if rest:
        rows, failed = sum(one["rows"] for one in rest), sum(one["failed"] for one in rest)
        shown.append([f"and {_count(len(rest), 'more task')}", f"{rows:,}", f"{failed:,}", None, None])
    return shown


def _remarks(found: Document) -> Iterator[str]:
    errors, again, load = found["errors"], found["retry_after"], found["load_generator"]
    if errors:
        yield "Rows failed: " + ", ".join(f"{code} {count:,}" for code, count in errors.items())
    if again["asked"]:
        yield (
            f"Retry-After: sent with {_count(again['asked'], 'answer')}, obeyed {again['obeyed']:,} times, "
            f"{again['waited_s']:.1f} s in all"
        )
    if found["load"]["rate_per_s"] is not None:
        yield f"Late starts: {found['late_starts']:,} of {found['requests']['sent']:,} requests"
    yield f"Load generator: {load['cpu_share']:.0%} of a core"
    if load["cpu_share"] >= BUSY:
        yield "It may itself be what was slow: ask from another machine, or ask less."
    if found["service"] is None:
        yield "The engine's side is unknown: /metrics could not be read, or belongs to several replicas."
    elif found["other_rows"]:
        yield f"Others asked as well: the service answered {found['other_rows']:,} rows beyond these."


def _ms(spread: Document | None, part: str) -> str | None:
    return None if spread is None else _number(spread[part] * 1000)


def _mean_ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{_number(seconds * 1000)} ms"


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
