"""Evaluation: loss on text kept back, and zero-shot accuracy on dev rows in given wordings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pretraining.mixture import Batch
from pretraining.objectives import Objective
from pretraining.packing import KEPT_BACK, read_manifest
from pretraining.place import Place
from pretraining.recipe import Probe, Recipe
from pretraining.rows import Purpose, Row, RowReader
from pretraining.shards import PackedReader
from pretraining.tokenizer import BOS

WINDOW = 512
MAX_WINDOWS = 64


def evaluate(
    model: PreTrainedModel, objectives: Mapping[str, Objective], recipe: Recipe, place: Place
) -> dict[str, Any]:
    """`kept_back`: nats a token, and bits a byte where that can be told, by corpus (and by objective, if the recipe has
    several); `probes`: accuracy and loss, by data set. JSON."""
    was_training = model.training
    model.eval()
    window = min(WINDOW, recipe.shape.context)
    kept_back: dict[str, dict[str, float]] = {}
    try:
        for name, objective in objectives.items():
            found = kept_back_losses(model, objective, place.texts, window)
            kept_back |= {(f"{of} ({name})" if len(objectives) > 1 else of): one for of, one in found.items()}
        asked = next(iter(objectives.values()))
        rows = RowReader(place.data, ())
        probes = [probe_scores(model, asked, probe, rows) for probe in recipe.probes]
    finally:
        model.train(was_training)
    return {"kept_back": kept_back, "probes": probes}


@torch.no_grad()
def kept_back_losses(
    model: PreTrainedModel, objective: Objective, texts: Path, window: int
) -> dict[str, dict[str, float]]:
    """Of each corpus, over at most `MAX_WINDOWS` windows of `window` tokens; what is hidden of them is the same in
    every evaluation."""
    result = {}
    for name, packed in read_manifest(texts).items():
        if not name.endswith(KEPT_BACK):
            continue
        nats = tokens = 0.0
        size = 0
        for at, batch in enumerate(_windows(PackedReader(texts / "shards" / name, packed), window)):
            prepared = objective.prepare(batch, np.random.default_rng((objective.recipe.seed, at)))
            found = objective.losses(model, *prepared.tensors(model.device))
            nats += float(found.plain.sum())
            tokens += float(found.counted.sum())
            size += len(objective.tokenizer.decode(prepared.targets[prepared.weights > 0].tolist()).encode())
        if tokens:
            told = {"nats_per_token": nats / tokens}
            if objective.writes_text:
                told["bits_per_byte"] = nats / math.log(2) / size
            result[name.removesuffix(KEPT_BACK)] = told
    return result


def _windows(reader: PackedReader, window: int) -> Iterator[Batch]:
    """Batches of one row, all of whose tokens count alike."""
    for at in range(min(MAX_WINDOWS, len(reader) // (window + 1))):
        ids = reader.window(at * (window + 1), window + 1)[0].astype(np.int64)[None]
        weights = (ids[:, 1:] != BOS).astype(np.float32)
        yield Batch(ids, weights, np.zeros(weights.shape, np.bool_), ("kept back",))


def probe_scores(model: PreTrainedModel, objective: Objective, probe: Probe, rows: RowReader) -> dict[str, Any]:
    """One probe: how often the right label's word is the likeliest of the labels' words, and the mean of -log of its
    share among them, in nats. Labels without a word are left out."""
    asked = probe_rows(probe, rows)
    labels = list(probe.words)
    texts = [probe.wording.format_map(row) for row in asked]
    scores = objective.label_scores(model, texts, [probe.words[label] for label in labels])
    right = torch.tensor([labels.index(row["label"]) for row in asked])
    return {
        "data": probe.data,
        "wording": probe.wording,
        "rows": len(asked),
        "accuracy": float((scores.argmax(1) == right).float().mean()),
        "loss": float(F.cross_entropy(scores, right)),
    }


def probe_rows(probe: Probe, rows: RowReader) -> list[Row]:
    """The dev rows that a probe asks. Raises WorkError if there are none at hand."""
    found = [row for row in rows.read(probe.data, "dev", Purpose.EVALUATE) if row["label"] in probe.words]
    return found[: probe.rows]


def summary(result: Mapping[str, Any]) -> str:
    """One line for people."""
    kept = [f"{name} {_in_short(values)}" for name, values in result["kept_back"].items()]
    probes = [f"{probe['data']} {100 * probe['accuracy']:.1f} %" for probe in result["probes"]]
    return "; ".join((*kept, *probes))


def _in_short(values: Mapping[str, float]) -> str:
    if "bits_per_byte" in values:
        return f"{values['bits_per_byte']:.3f} bits/byte"
    return f"{values['nats_per_token']:.3f} nats/token"
