"""What the service says about its own work: `/metrics` read before and after, and what the difference means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from app.cli.bench.wire import Wire

PREFIX = "chorus_"
PHASES = ("prefill", "decode")

Sums = Mapping[str, float]


async def read_sums(wire: Wire) -> dict[str, float] | None:
    """Every counter and histogram sum, `name` or `name:phase` to value; None where metrics cannot be read."""
    try:
        async with wire.ask("GET", "/metrics") as reply:
            content = await reply.read()
    except (OSError, EOFError):
        return None
    return parse_sums(content.decode()) if reply.status == 200 else None


def parse_sums(text: str) -> dict[str, float]:
    """Sums of Prometheus' text over all labels but `phase`; buckets and gauges are left out."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if family.type not in ("counter", "histogram"):
            continue
        for sample in family.samples:
            if sample.name.endswith(("_bucket", "_created")):
                continue
            name = sample.name.removeprefix(PREFIX)
            phase = sample.labels.get("phase")
            name = f"{name}:{phase}" if phase else name
            found[name] = found.get(name, 0.0) + sample.value
    return found


def work_between(before: Sums | None, after: Sums | None) -> dict[str, Any] | None:
    """The engine's work between two readings: means and shares, None for what did not happen. None as a whole where
    there is nothing to compare, or where a counter ran backwards: two replicas behind one address, or a restart."""
    if not before or not after:
        return None
    spent = {name: value - before.get(name, 0.0) for name, value in after.items()}
    if min(spent.values()) < 0:
        return None
    prompt, padding = spent.get("engine_prompt_tokens_total", 0.0), spent.get("engine_padding_tokens_total", 0.0)
    steps = spent.get("engine_prefill_steps_total", 0.0)
    return {
        **{phase: _phase(spent, phase) for phase in PHASES},
        "prompt_tokens_per_prefill_step": _share(prompt, steps),
        "padding_share": _share(padding, prompt + padding),
        "prefix_cache_hit_rate": _share(
            spent.get("prefix_cache_hits_total", 0.0), spent.get("prefix_cache_queries_total", 0.0)
        ),
        "queue_time_mean_s": _mean(spent, "request_queue_time_seconds"),
        "inter_token_mean_s": _mean(spent, "inter_token_latency_seconds"),
        "rows_answered": int(spent.get("request_success_total", 0.0)),
    }


def _phase(spent: Sums, phase: str) -> dict[str, Any]:
    return {
        "steps": int(spent.get(f"engine_{phase}_steps_total", 0.0)),
        "rows_per_step": _mean(spent, "batch_rows", phase),
        "prompts_per_step": _mean(spent, "batch_prompts", phase),
    }


def _mean(spent: Sums, name: str, phase: str | None = None) -> float | None:
    behind = f":{phase}" if phase else ""
    return _share(spent.get(f"{name}_sum{behind}", 0.0), spent.get(f"{name}_count{behind}", 0.0))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
