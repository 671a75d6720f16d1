"""From a checkpoint to a folder that transformers loads: bf16 safetensors, config, tokenizer, and where it is from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from pretraining import tokenizer as tokenizers
from pretraining.checkpoint import checkpoints, read_checkpoint
from pretraining.errors import WorkError
from pretraining.files import read_json, write_json
from pretraining.model import model_config
from pretraining.recipe import Recipe

MAX_BYTES = 64 * 2**20


def newest_model(recipe: Recipe, work: Path, *, averaged: bool = True) -> tuple[LlamaForCausalLM, int]:
    """The model of the newest checkpoint, fp32, and its step. `averaged`: the moving average, not the last weights.

    Raises WorkError if there is no checkpoint, or it is of another shape.
    """
    found = checkpoints(work / "checkpoints")
    if not found:
        raise WorkError(f"there is no checkpoint in {work / 'checkpoints'}: train first")
    state, tensors = read_checkpoint(found[-1])
    vocabulary = read_json(work / "tokenizer" / "state.json")["vocabulary"]
    model = LlamaForCausalLM(model_config(recipe, vocabulary))
    prefix = "average." if averaged else "model."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(weights[name])
    except (KeyError, RuntimeError) as error:
        raise WorkError(f"{found[-1].name} is not of this recipe's shape: {error}") from None
    return model.eval(), int(state["step"])


def export(recipe: Recipe, work: Path, out: Path, *, averaged: bool = True) -> Path:
    """Write the model folder `out`; one that is there is replaced once the new one is whole.

    Raises WorkError if the weights are larger than `MAX_BYTES`.
    """
    model, step = newest_model(recipe, work, averaged=averaged)
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    model.config.use_cache = True
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(beside)
    size = sum(file.stat().st_size for file in beside.glob("*.safetensors"))
    if size > MAX_BYTES:
        shutil.rmtree(beside)
        raise WorkError(f"the weights are {size / 2**20:.1f} MiB; at most {MAX_BYTES / 2**20:.0f} MiB may ship")
    tokenizers.for_transformers(work / "tokenizer", recipe.shape.context).save_pretrained(beside)
    write_json(beside / "provenance.json", provenance(recipe, work, step, averaged=averaged))
    for file in beside.iterdir():
        file.chmod(0o644)  # weights are written for their owner alone
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
    return out


def provenance(recipe: Recipe, work: Path, step: int, *, averaged: bool) -> dict[str, Any]:
    """What the weights were made from: recipe, shards, how much of each source, what was dropped."""
    manifest = read_json(work / "shards" / "manifest.json")
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "step": step,
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
    """Tokens read up to `step`."""
    total, begin = 0, 0
    for phase in recipe.phases:
        # A step belongs to a phase while step / steps is below `until`, so the first of the next is rounded up.
        end = min(step, -int(-phase.until * recipe.train.steps // 1))
        total += max(0, end - begin) * phase.rows * phase.length
        begin = max(begin, end)
    return total
