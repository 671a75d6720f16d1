"""A tiny random model that each call loads anew, and a small task for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.backbone import Backbone, parse_template
from app.backbone.backbone import make_tokenizer, wrap_model
from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.comparison import Comparison
from app.compare.contestants import choose
from app.compare.setting import Setting
from app.compare.tasks import TaskRows
from app.training.data import parse_rows
from tests.architectures import build_model, tokenizer_for
from tests.training_data import mood_rows

BUDGET = Budget(steps=4, batch_size=4, grid=(0.5, 2.0), shots=2, members=2)


def fresh() -> Backbone:
    model = build_model("llama")
    return wrap_model(model, make_tokenizer(tokenizer_for("llama"), model), name="llama", identity="f" * 64)


def mood_task(name: str = "mood", *, count: int = 32, template: str = "<prompt:3>{text}\nAnswer:") -> TaskRows:
    rows = parse_rows(mood_rows(count)).examples
    return TaskRows(
        name=name,
        template=parse_template(template),
        words={"bad": [" bad"], "good": [" good"]},
        metric="accuracy",
        train=rows[: count // 2],
        dev=rows[count // 2 : 3 * count // 4],
        test=rows[3 * count // 4 :],
        references=tuple((str(e.label),) for e in rows[3 * count // 4 :]),
    )


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return fresh()


@pytest.fixture
def setting(backbone: Backbone) -> Setting:
    return Setting(mood_task(), backbone)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Comparison]:
    """A comparison in `tmp_path`, of the named methods; called again it is what a second run of the command is."""

    def made(*methods: str, tasks: Any = None, budget: Budget = BUDGET, **options: Any) -> Comparison:
        cells = Cells(tmp_path / "out", {"model": "llama", "fingerprint": "f" * 64, "budget": budget.describe()})
        of = tasks or [mood_task()]
        load = options.pop("load", fresh)
        return Comparison(load, of, choose(methods or None), budget, cells, lambda _: None, **options)

    return made
