"""What became of requests: one outcome each, and the sums, rates and percentiles over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

LATE_S = 0.01  # an open loop that starts a request later than this after its time was late
SHARES = (0.5, 0.9, 0.99)


@dataclass(slots=True)
class Outcome:
    """One request, times on one monotonic clock in seconds. `due` is when it had to start: latency counts from there,
    so that a load that falls behind cannot hide what its callers would have felt. `codes` has the error of each row
    (None: answered), or the `finish_reason` of one that was cut short; `gaps` the seconds between the events of a
    stream."""

    refs: tuple[str, ...]
    due: float
    began: float
    ended: float = 0.0
    first: float | None = None
    codes: tuple[str | None, ...] = ()
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    retry_after_s: float | None = None

    @property
    def answered(self) -> int:
        return sum(code is None for code in self.codes)

    @property
    def seconds(self) -> float:
        return self.ended - self.due


@dataclass
class Run:
    """All outcomes of a measured load, and what the load generator itself did."""

    outcomes: list[Outcome] = field(default_factory=list)
    cpu_s: float = 0.0
    waits: int = 0
    waited_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """From the first request's start to the last one's end."""
        if not self.outcomes:
            return 0.0
        return max(one.ended for one in self.outcomes) - min(one.began for one in self.outcomes)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lie, between neighbours by straight line."""
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Count, mean, percentiles and greatest of some seconds; None of none."""
    known = sorted(values)
    if not known:
        return None
    found: dict[str, float] = {"n": len(known), "mean": sum(known) / len(known)}
    return found | {f"p{share * 100:.0f}": percentile(known, share) for share in SHARES} | {"max": known[-1]}


def summarise(run: Run) -> dict[str, Any]:
    """The client's view of a run, ready to be printed as JSON. Latencies are of requests that were answered."""
    whole = [one for one in run.outcomes if one.codes and one.answered == len(one.codes)]
    rows, tokens = sum(one.answered for one in run.outcomes), sum(one.tokens for one in run.outcomes)
    elapsed = run.elapsed_s or float("inf")
    asked = [one for one in run.outcomes if one.retry_after_s is not None]
    return {
        "elapsed_s": run.elapsed_s,
        "requests": {"sent": len(run.outcomes), "answered": len(whole), "per_s": len(whole) / elapsed},
        "rows": {"sent": sum(len(one.refs) for one in run.outcomes), "answered": rows, "per_s": rows / elapsed},
        "generated_tokens": {"total": tokens, "per_s": tokens / elapsed},
        "latency_s": {
            "first_token": spread(one.first - one.due for one in whole if one.first is not None),
            "inter_token": spread(gap for one in whole for gap in one.gaps),
            "end_to_end": spread(one.seconds for one in whole),
        },
        "errors": dict(Counter(code for one in run.outcomes for code in one.codes if code is not None).most_common()),
        "retry_after": {"asked": len(asked), "obeyed": run.waits, "waited_s": run.waited_s},
        "late_starts": sum(one.began - one.due > LATE_S for one in run.outcomes),
        "load_generator": {"cpu_s": run.cpu_s, "cpu_share": run.cpu_s / elapsed},
        "tasks": _by_task(run.outcomes),
    }


def _by_task(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Rows of each task; a row's latency is that of the request it came in."""
    rows: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {}
    for one in outcomes:
        for ref, code in zip(one.refs, one.codes, strict=True):
            rows[ref] += 1
            failed[ref] += code is not None
            if code is None:
                seconds.setdefault(ref, []).append(one.seconds)
    return [
        {"task": ref, "rows": count, "failed": failed[ref], "end_to_end_s": spread(seconds.get(ref, ()))}
        for ref, count in rows.most_common()
    ]
