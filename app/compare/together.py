"""How fast the frozen model answers all tasks at once, by each contestant that leaves it as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.backbone import Backbone, SoftPrompt, parse_template
from app.backbone.soft_prompt import from_tensors
from app.compare.comparison import Comparison
from app.compare.contestants import Contestant
from app.compare.serving import Ask, asks_of, mixed, requests_per_second
from app.compare.setting import Setting


def serve(comparison: Comparison) -> None:
    """Requests a second of each contestant, its prompts of all tasks in one mixed batch; once each."""
    backbone: Backbone | None = None
    for contestant in comparison.contestants:
        cells = comparison.cells
        names = [task.name for task in comparison.tasks]
        if contestant.kind == "weights" or contestant.name == "majority":
            continue
        found = [(name, cells.get("result", name, contestant.name)) for name in names]
        good = [(name, one) for name, one in found if one is not None and "left_out" not in one]
        key = (contestant.name, "+".join(name for name, _ in good))
        if not good or cells.get("served", *key) is not None:
            continue
        backbone = backbone or comparison.load()
        asks = [_asks(comparison, backbone, contestant, name, one) for name, one in good]
        rate = requests_per_second(backbone, mixed(asks))
        cells.put("served", key, requests_s=rate, tasks=[name for name, _ in good])
        comparison.tell(f"{contestant.title}: {rate:.0f} requests/s, {len(good)} tasks mixed")


def _asks(
    comparison: Comparison, backbone: Backbone, contestant: Contestant, name: str, record: dict[str, Any]
) -> list[Ask]:
    task = next(one for one in comparison.tasks if one.name == name)
    setting = Setting(task, backbone, comparison.budget.seed)
    kept = record.get("tensors")
    files: Sequence[str] = kept if isinstance(kept, list) else [kept] if kept else []
    prompts: list[tuple[str, SoftPrompt] | None] = []
    for file in files:
        tensors = comparison.cells.tensors(tuple(file.split("--")))
        learned = from_tensors(tensors or {})
        prompts.append(None if learned is None else (file, learned))
    return asks_of(setting, setting.dressed(parse_template(record["template"])), prompts or [None])
