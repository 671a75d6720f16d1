"""What a run recorded, read and checked: a card must not tell one model's records as another's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from app.backbone import BackboneConfig, load_backbone
from pretraining.card.duration import Logged, read_lines
from pretraining.errors import WorkError
from pretraining.export import tokens_until
from pretraining.files import read_json
from pretraining.place import Place
from pretraining.recipe import FAMILIES, Probe, Recipe
from pretraining.rows import RowReader
from pretraining.scoring import probe_rows
from prompt_store.errors import StoreError
from prompt_store.starters import Starter, read_starters

_TOLD = ("recipe", "step", "objectives", "weights", "tokens_trained", "held_out", "shards_key")


@dataclass(frozen=True)
class Run:
    """`step` and `tokens` are those of the exported model; `lines` and `evaluations` go no further. `majority`: the
    share of the most common label among each probe's rows, in the recipe's order. `shares`: tokens by source."""

    recipe: Recipe
    step: int
    tokens: int
    parameters: int
    vocabulary: int
    provenance: Mapping[str, Any]
    manifest: Mapping[str, Any]
    lines: list[Logged]
    evaluations: list[dict[str, Any]]
    majority: list[float]
    shares: Mapping[str, float]
    prompts: list[Starter]

    @property
    def family(self) -> str:
        return FAMILIES[self.recipe.stretches()[0].objective]

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.parameters / 1e6:.0f}m"


def read_run(recipe: Recipe, place: Place, model: Path, prompts: Path | None = None) -> Run:
    """Raises WorkError if a record is missing, naming the stage that makes it, is damaged, or is not of this model."""
    try:
        return _read(recipe, place, model, prompts)
    except (KeyError, TypeError) as error:
        raise WorkError(f"a record of this run lacks what a card needs: {error!r}") from None


def _read(recipe: Recipe, place: Place, model: Path, prompts: Path | None) -> Run:
    manifest = _json(place.texts / "shards" / "manifest.json", "pack")
    provenance = _json(model / "provenance.json", "export")
    if missing := [key for key in _TOLD if key not in provenance]:
        raise WorkError(f"{model} does not tell its {', '.join(missing)}: run the stage export")
    step, tokens = int(provenance["step"]), int(provenance["tokens_trained"])
    if provenance["recipe"] != recipe.name or tokens != tokens_until(recipe, step):
        raise WorkError(f"{model} was exported from another recipe: run the stage export")
    if provenance["shards_key"] != manifest["key"]:
        raise WorkError(f"{model} was made from other texts than those in {place.texts}: run the stage export")
    log = [line for line in _lines(place.log) if line["step"] <= step]
    evaluations = [line for line in _lines(place.evaluations) if line["step"] <= step]
    for file, found in ((place.log, log), (place.evaluations, evaluations)):
        if not found:
            raise WorkError(f"{file} tells nothing of the first {step} steps: run the stage train")
    return Run(
        recipe=recipe,
        step=step,
        tokens=tokens,
        parameters=parameters_of(model),
        vocabulary=int(_json(place.texts / "tokenizer" / "state.json", "tokenizer")["vocabulary"]),
        provenance=provenance,
        manifest=manifest,
        lines=read_lines(log, lambda at: tokens_until(recipe, at)),
        evaluations=evaluations,
        majority=[majority(probe, RowReader(place.data, ())) for probe in recipe.probes],
        shares=tokens_by_source(recipe, step),
        prompts=prompts_of(model, prompts) if prompts else [],
    )


def tokens_by_source(recipe: Recipe, step: int) -> dict[str, float]:
    """Tokens of the windows read of each source up to `step`: the mixture keeps to its shares without chance."""
    found = dict.fromkeys((source.name for source in recipe.sources), 0.0)
    begin = 0
    for phase, end in zip(recipe.phases, recipe.phase_ends(), strict=True):
        read = max(0, min(step, end) - begin) * phase.rows * phase.length
        for name, share in phase.mixture.items():
            found[name] += read * share
        begin = end
    return found


def parameters_of(model: Path) -> int:
    """Numbers in a folder's safetensors. Raises WorkError if there are none."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise WorkError(f"there are no weights in {model}: run the stage export")
    total = 0
    for file in files:
        try:
            with safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118  it is no mapping
                    size = 1
                    for length in content.get_slice(name).get_shape():
                        size *= length
                    total += size
        except (SafetensorError, OSError) as error:
            raise WorkError(f"{file} cannot be read: {error}") from None
    return total


def majority(probe: Probe, rows: RowReader) -> float:
    labels = Counter(row["label"] for row in probe_rows(probe, rows))
    return labels.most_common(1)[0][1] / labels.total()


def prompts_of(model: Path, folder: Path) -> list[Starter]:
    """Starters of a folder, by task. Raises WorkError unless all were tuned on this very model."""
    try:
        found = read_starters(folder)
    except (StoreError, OSError, ValueError, KeyError) as error:
        raise WorkError(f"the prompts in {folder} cannot be read: {error}") from None
    if not found:
        raise WorkError(f"there are no prompts in {folder}: python -m benchmarks.starters makes them")
    ours = load_backbone(BackboneConfig(str(model), dtype="float32")).fingerprint
    if others := [one.task for one in found if one.meta.backbone.fingerprint != ours]:
        raise WorkError(f"the prompts {', '.join(others)} in {folder} were tuned on another model than {model}")
    return found


def _json(file: Path, stage: str) -> Any:
    if not file.is_file():
        raise WorkError(f"{file} is not there: run the stage {stage}")
    return read_json(file)


def _lines(file: Path) -> list[dict[str, Any]]:
    """JSON lines. Raises WorkError if the file is missing or damaged; a line cut off at its end is left out."""
    if not file.is_file():
        raise WorkError(f"{file} is not there: run the stage train")
    try:
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise WorkError(f"{file} is damaged: {error}") from None
