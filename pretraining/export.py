"""From a checkpoint to a folder that transformers loads: bf16 safetensors, config, tokenizer, and where it is from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pretraining import tokenizer as tokenizers
from pretraining.checkpoint import checkpoint_at, read_checkpoint
from pretraining.errors import WorkError
from pretraining.files import read_json, write_json
from pretraining.objectives import kind_of_model, objectives_of
from pretraining.place import Place
from pretraining.recipe import Recipe

MAX_BYTES = 64 * 2**20


def trained_model(
    recipe: Recipe, place: Place, *, averaged: bool = True, after: str | None = None, at: int | None = None
) -> tuple[PreTrainedModel, int]:
    """The model of the newest checkpoint, fp32, and its step. `averaged`: the moving average, not the last weights.
    `after`: as it was when it had learnt this objective, before the next. `at`: as it was after this step, instead.

    Raises WorkError if there is no such checkpoint, or it is of another shape.
    """
    ends = {stretch.objective: stretch.end for stretch in recipe.stretches()}
    if after is not None and after not in ends:
        raise WorkError(f"this recipe has no objective {after}; it has {', '.join(ends)}")
    file = checkpoint_at(place.checkpoints, at if after is None else ends[after])
    state, tensors = read_checkpoint(file)
    vocabulary = read_json(place.texts / "tokenizer" / "state.json")["vocabulary"]
    model = kind_of_model(recipe).build_model(recipe, vocabulary)
    prefix = "average." if averaged else "model."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(weights[name])
    except (KeyError, RuntimeError) as error:
        raise WorkError(f"{file.name} is not of this recipe's shape: {error}") from None
    return model.eval(), int(state["step"])


def export(
    recipe: Recipe, place: Place, out: Path, *, averaged: bool = True, after: str | None = None, at: int | None = None
) -> Path:
    """Write the model folder `out`; one that is there is replaced once the new one is whole. `averaged`, `after` and
    `at` as for `trained_model`.

    Raises WorkError if the weights are larger than `MAX_BYTES`.
    """
    model, step = trained_model(recipe, place, averaged=averaged, after=after, at=at)
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    model.config.use_cache = True
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(beside)
    size = sum(file.stat().st_size for file in beside.glob("*.safetensors"))
    if size > MAX_BYTES:
        shutil.rmtree(beside)
        raise WorkError(f"the weights are {size / 2**20:.1f} MiB; at most {MAX_BYTES / 2**20:.0f} MiB may ship")
    folder = place.texts / "tokenizer"
    dress = next(iter(objectives_of(recipe, tokenizers.load_tokenizer(folder)).values())).dress
    tokenizers.for_transformers(folder, recipe.shape.context, dress).save_pretrained(beside)
    write_json(beside / "provenance.json", provenance(recipe, place.texts, step, averaged=averaged))
    for file in beside.iterdir():
        file.chmod(0o644)  # weights are written for their owner alone
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
    return out


def provenance(recipe: Recipe, texts: Path, step: int, *, averaged: bool) -> dict[str, Any]:
    """What the weights were made from: recipe, shards, how much of each source, what was dropped."""
    manifest = read_json(texts / "shards" / "manifest.json")
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "step": step,
        "objectives": {one.objective: min(step, one.end) - one.begin for one in recipe.stretches() if one.begin < step},
        "weights": "moving average" if averaged else "last",
        "tokens_trained": tokens_until(recipe, step),
        "held_out": list(recipe.held_out),
        "sources": {
            name: {key: one[key] for key in ("documents", "tokens")} for name, one in manifest["sources"].items()
        },
        "shards_key": manifest["key"],
        "overlap": manifest["overlap"],
    }


def tokens_until(recipe: Recipe, step: int) -> int:
    """Tokens of the windows read up to `step`."""
    total = begin = 0
    for phase, end in zip(recipe.phases, recipe.phase_ends(), strict=True):
        total += max(0, min(step, end) - begin) * phase.rows * phase.length
        begin = end
    return total
