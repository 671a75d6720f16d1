"""Checks of the model: torch and its device, whether the backbone loads, on which runner, and the memory it takes."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from app.cli.checks import Check, human
from app.errors import ChorusError
from app.settings import Settings

if TYPE_CHECKING:
    from app.backbone import Backbone

TRAIN_ROWS, TRAIN_TOKENS = 32, 128  # the batch the estimate of a trainer's memory is made for
ACTIVATION_VALUES = 34  # values kept for each token, layer and unit of width in a training step, attention aside
PROCESS_BYTES = 350 << 20  # Python with torch loaded, before any weights
NO_COMPILER = "install a C compiler (Debian: apt install gcc libc6-dev), or see in the log why its library is not used"


def check_torch(settings: Settings) -> Check:
    """Which torch, which device, how many threads."""
    try:
        import torch
    except ImportError as error:
        return Check("torch", "fail", str(error), "make setup")
    if torch.cuda.is_available():
        found = f"{torch.__version__}, {torch.cuda.get_device_name()}"
        return Check("torch", "ok", found)
    if settings.device.startswith("cuda"):
        return Check("torch", "fail", f"{torch.__version__} sees no GPU", "CHORUS_DEVICE=auto serves on the CPU")
    return Check("torch", "ok", f"{torch.__version__}, no GPU: the CPU serves, {settings.cpu_threads} threads")


def check_model(settings: Settings) -> list[Check]:
    """Load the backbone as the service would, and add up what memory it takes."""
    from app.backbone import BackboneConfig, load_backbone

    began = time.perf_counter()
    try:
        backbone = load_backbone(
            BackboneConfig(
                source=settings.model,
                revision=settings.model_revision,
                dtype=settings.dtype,
                device=settings.device,
                device_map=settings.device_map,
                cache=settings.data_dir / "cache",
            )
        )
    except ChorusError as error:
        return [Check("model", "fail", error.message, "CHORUS_MODEL=bundled, or another folder or hub id")]
    seconds = time.perf_counter() - began
    dtype = str(backbone.dtype).removeprefix("torch.")
    found = f"{backbone.name} on {backbone.device}, {dtype}, loaded in {seconds:.1f} s"
    return [
        Check("model", "ok", found),
        Check("fingerprint", "ok", backbone.fingerprint),
        _check_runner(backbone),
        _check_memory(backbone, settings),
    ]


def _check_runner(backbone: Backbone) -> Check:
    if backbone.runner_name == "reference":
        return Check("runner", "warn", f"{backbone.runner_name}: correct, but slow; {backbone.probed.reason}")
    agrees = "it agrees with the model's own forward"
    decoder = backbone.probed.decoder
    if decoder is None:
        return Check("runner", "ok", f"{backbone.runner_name}: {agrees}")
    if decoder.steps.name == "native":
        return Check("runner", "ok", f"{backbone.runner_name} (compiled steps): {agrees}")
    found = f"{backbone.runner_name} (plain torch steps): {agrees}"
    from app.backbone.native.build import could_be

    if backbone.device.type == "cpu" and could_be(backbone.dtype):
        return Check("runner", "warn", f"{found}, but is slower than compiled", NO_COMPILER)
    return Check("runner", "ok", found)


def _check_memory(backbone: Backbone, settings: Settings) -> Check:
    """Weights, keys and values of all rows at full length, cached prompts, a trainer beside: against what is free."""
    weights: int = sum(one.numel() * one.element_size() for one in backbone.model.parameters())
    rows = settings.max_rows * min(settings.max_context, backbone.max_positions) * token_bytes(backbone)
    serving = weights + rows + (settings.prompt_cache_mb << 20)
    training = weights + activation_bytes(backbone)
    needed = serving + training + 2 * PROCESS_BYTES
    sum_ = (
        f"serving {human(serving)} (weights {human(weights)} + {settings.max_rows} rows {human(rows)} + prompts "
        f"{settings.prompt_cache_mb} MiB), training about {human(training)}, two processes {human(2 * PROCESS_BYTES)}"
    )
    free = free_bytes(backbone)
    found = f"{human(needed)} of {human(free)} available: {sum_}"
    if needed > free:
        return Check("memory", "warn", found, f"CHORUS_MAX_ROWS={max(1, settings.max_rows // 4)}")
    return Check("memory", "ok", found)


def token_bytes(backbone: Backbone) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = backbone.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * backbone.embedding_weight.element_size())


def activation_bytes(backbone: Backbone) -> int:
    """What one training step of the usual batch keeps for its backward pass (an estimate)."""
    config = backbone.model.config
    tokens = TRAIN_ROWS * TRAIN_TOKENS
    attention = 2 * config.num_attention_heads * TRAIN_TOKENS
    per_token = ACTIVATION_VALUES * config.hidden_size + attention
    logits = tokens * backbone.vocab_size * 2
    return int((tokens * config.num_hidden_layers * per_token + logits) * 4)


def free_bytes(backbone: Backbone) -> int:
    """Memory that could be had now on the backbone's device. The copy loaded for this check counts as free."""
    weights: int = sum(one.numel() * one.element_size() for one in backbone.model.parameters())
    if backbone.device.type == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info(backbone.device)[0]
        return free + weights
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
        return found["MemAvailable"] + weights
    except (OSError, KeyError, ValueError):
        pages: int = os.sysconf("SC_PHYS_PAGES")
        return pages * os.sysconf("SC_PAGE_SIZE")
