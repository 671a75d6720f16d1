"""The load probe: does the fast path agree with this model's own forward?

Architectures differ in how they take masks, positions and caches that they did not make themselves, and some ignore
them without a word. So nothing is assumed: on load, rows of unequal length and unequal cached prefixes, with padding,
branches, a long row and decode steps, go through the fast path and, one by one, through the model's plain forward. The
first form of the fast path that agrees is used; if none does, the model runs on the reference runner; if even that
disagrees with the plain forward, the model is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from app.backbone.decoder import Decoder, has_room, is_llama_shaped
from app.backbone.forward import Forward, MaskStyle
from app.backbone.kv import KVShape
from app.backbone.packed_runner import PackedRunner
from app.backbone.placement import spread
from app.backbone.reference import ReferenceRunner, plain_logits
from app.backbone.rows import Row
from app.backbone.runner import FastRunner, PrefillItem, Runner
from app.backbone.verbalizer import Verbalizer
from app.errors import UnsupportedBackbone

if TYPE_CHECKING:
    from app.backbone.families.masked_forward import MaskedForward
    from app.backbone.families.seq2seq_forward import Seq2SeqForward

log = logging.getLogger(__name__)
_PROMPTS = (3, 0, 9)  # unequal cached prefixes
_TEXTS = (4, 11, 7)
_LONG = 192  # tokens of the long row, or a little more than a short sliding window
_LONGEST_WINDOW = 512  # windows up to this are exercised; longer ones bound the context instead
_STEPS = 2
# What a model may raise where it does not take what it is given.
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
RELATIVE_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.04, torch.float16: 0.01}


@dataclass(frozen=True)
class ProbeResult:
    """`forward` is None where only the reference runner agrees; `reason` says why, `deviation` how far apart.
    `decoder` is our own form of the model, where there is one and it agrees; `kv_shape` what a token leaves in its
    layers, None where keys and values cannot be given from outside. Other families have a forward of their own:
    `seq2seq` (None: the reference runner) or `masked`."""

    forward: Forward | None
    deviation: float
    reason: str
    decoder: Decoder | None = None
    kv_shape: KVShape | None = None
    seq2seq: Seq2SeqForward | None = None
    masked: MaskedForward | None = None


@dataclass(frozen=True)
class _Case:
    row: Row
    prompt: Tensor | None
    continuation: tuple[int, ...]
    branches: Verbalizer


def sliding_window(config: Any) -> int | None:
    """The window of sliding-window layers, if the configuration names one that is in use."""
    window = getattr(config, "sliding_window", None)
    in_use = getattr(config, "use_sliding_window", True)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return int(window) if window and in_use else None


def probeable_context(config: Any, positions: int) -> int:
    """The context this model can be trusted with. Frequencies of dynamic and longrope embeddings depend on the longest
    row ever seen, so such models stop at the length they were first trained for; a sliding window too long to be
    exercised bounds the context as well."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [value for value in rope.values() if isinstance(value, dict)]
    for kind in kinds:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            original = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            positions = min(positions, int(original or positions))
    window = sliding_window(config)
    return min(positions, window) if window and window > _LONGEST_WINDOW else positions


@torch.no_grad()
def probe(model: Any, *, vocab_size: int, context: int) -> ProbeResult:
    """Find the form of the fast path that agrees with `model`'s own forward.

    Raises:
        UnsupportedBackbone: not even the reference runner agrees (the model's cache and plain forward differ).
    """
    config = model.config.get_text_config()
    window = sliding_window(config)
    long = min(context - _STEPS - 4, (window + 24) if window and window <= _LONGEST_WINDOW else _LONG)
    cases = _cases(model, vocab_size, long)
    wanted = [_wanted(model, case) for case in cases]
    scale = max(1.0, *(float(logits.abs().max()) for rows in wanted for logits in rows))
    tolerance = RELATIVE_TOLERANCE[model.dtype] * scale
    places = long + _STEPS + 8
    closest, reason = float("inf"), "no form of mask fits"
    for forward in _candidates(model, window if window and window <= _LONGEST_WINDOW else None):
        try:
            runner = FastRunner(forward, slots=2 * len(cases), places=places)
            deviation = _deviation(runner, cases, wanted)
        except MODEL_ERRORS as error:
            reason = f"the fast path cannot run: {type(error).__name__}"
            continue
        if deviation <= tolerance:
            fixed = window is None or window > _LONGEST_WINDOW  # the context ends before the window does
            decoder = _decoder(model, cases, wanted, places, tolerance) if fixed else None
            return ProbeResult(forward, deviation, "", decoder, runner.kv_shape)
        if deviation < closest:
            closest, reason = (
                deviation,
                f"logits of the fast path differ by {deviation:.2g} (tolerance {tolerance:.2g})",
            )
    deviation = _deviation(ReferenceRunner(model, slots=2 * len(cases), places=places), cases, wanted)
    if not deviation <= tolerance:
        raise UnsupportedBackbone(
            f"this model's cache and its plain forward differ by {deviation:.2g} (tolerance {tolerance:.2g}): "
            "it cannot be served faithfully",
            param="model",
        )
    return ProbeResult(None, deviation, reason)


def _decoder(
    model: Any, cases: list[_Case], wanted: list[list[Tensor]], places: int, tolerance: float
) -> Decoder | None:
    """Our own form of the model if it is one that we know, runs and agrees."""
    if spread(model) or not is_llama_shaped(model):
        return None
    if not has_room(model):
        log.warning("too little memory to lay the weights out anew: serving without the packed form")
        return None
    try:
        decoder = Decoder(model)
        deviation = _deviation(PackedRunner(decoder, slots=2 * len(cases), places=places), cases, wanted)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        log.warning("this model's packed form cannot run", extra={"error": repr(error)})
        return None
    if not deviation <= tolerance:
        log.warning("this model's packed form disagrees", extra={"deviation": deviation, "tolerance": tolerance})
        return None
    return decoder


def _candidates(model: Any, window: int | None) -> Iterator[Forward]:
    styles: list[tuple[MaskStyle, int | None]] = [(MaskStyle.FULL, None)]
    if window is not None:
        styles = [(MaskStyle.BY_LAYER_TYPE, window), (MaskStyle.WINDOW, window), *styles]
    for style, width in styles:
        for head_apart in (True, False):
            yield Forward(model, style, width, head_apart)


def random_tokens(generator: torch.Generator, vocab_size: int, count: int) -> list[int]:
    """Ids of words, any of them."""
    found: list[int] = torch.randint(0, vocab_size, (count,), generator=generator).tolist()
    return found


def _cases(model: Any, vocab_size: int, long: int) -> list[_Case]:
    generator = torch.Generator().manual_seed(20)
    weight = model.get_input_embeddings().weight

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random_tokens(generator, vocab_size, count))

    cases = []
    for prompt_size, text in zip((*_PROMPTS, 5), (*_TEXTS, max(1, long - 5)), strict=True):
        ids = (*(-1 - j for j in range(prompt_size)), *tokens(text))
        vectors = weight[list(tokens(prompt_size))] * 1.5 if prompt_size else None
        words = ((tokens(1), tokens(3)), (tokens(2),))
        branches = Verbalizer(("a", "b"), (("a", "A"), ("b",)), words, terminated=False)
        cases.append(_Case(Row(ids, prompt_size), vectors, tokens(_STEPS), branches))
    return cases


def _wanted(model: Any, case: _Case) -> list[Tensor]:
    """Plain forwards: logits after the row and after each of its continuation's tokens, and the label scores."""
    runner = ReferenceRunner(model, slots=1, places=0)
    whole = runner.embeds(Row((*case.row.ids, *case.continuation)), case.prompt)
    logits = plain_logits(model, whole)[case.row.total - 1 :]
    return [*logits, runner.score(case.row, case.prompt, case.branches)]


def _deviation(runner: Runner, cases: list[_Case], wanted: list[list[Tensor]]) -> float:
    """Largest difference, over a cold prefill, a prefill on reused prefixes in other slots, and decode steps."""
    cold = [PrefillItem(case.row, case.prompt, None, case.branches) for case in cases]
    first = runner.prefill(0, cold)
    worst = _worst(first.logits, [rows[0] for rows in wanted])
    worst = max(worst, _worst(first.scores, [rows[-1] for rows in wanted]))
    warm = [
        PrefillItem(
            case.row, case.prompt, runner.read_prefix(i, case.row.prefix) if case.row.prefix else None, case.branches
        )
        for i, case in enumerate(cases)
    ]
    second = runner.prefill(len(cases), warm)
    worst = max(worst, _worst(second.logits, [rows[0] for rows in wanted]))
    for i, case in enumerate(cases):
        runner.move(len(cases) + i, i, case.row.total)
    lengths = torch.tensor([case.row.total for case in cases], device=first.logits.device)
    for step in range(_STEPS):
        fed = torch.tensor([case.continuation[step] for case in cases], device=first.logits.device)
        logits = runner.decode(fed, lengths, int(lengths.max()))
        lengths = lengths + 1
        worst = max(worst, _worst(logits, [rows[step + 1] for rows in wanted]))
    return worst


def _worst(got: Any, wanted: list[Tensor]) -> float:
    differences = [float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True)]
    return max((d if d == d else float("inf")) for d in differences)
