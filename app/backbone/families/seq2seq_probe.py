"""The load probe of encoder-decoders: rows of unequal length, with prompts on both sides, through prefill, label scores
and steps at mixed lengths, against each row alone through the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from app.backbone.families.seq2seq_forward import Seq2SeqForward
from app.backbone.families.seq2seq_reference import Seq2SeqReference
from app.backbone.families.seq2seq_runner import Seq2SeqRunner
from app.backbone.probe import MODEL_ERRORS, RELATIVE_TOLERANCE, ProbeResult, random_tokens
from app.backbone.rows import Row
from app.backbone.runner import PrefillItem, Runner
from app.backbone.soft_prompt import EncoderDecoderPrompt
from app.backbone.tokenizer import BackboneTokenizer
from app.backbone.verbalizer import Verbalizer
from app.errors import UnsupportedBackbone

_ENCODER, _TEXTS, _DECODER = (3, 0, 9, 5), (4, 11, 7), (0, 0, 4, 2)
_LONG = 192
_STEPS = 3


@dataclass(frozen=True)
class _Case:
    row: Row
    prompt: EncoderDecoderPrompt
    continuation: list[int]
    words: Verbalizer


def decoder_start(model: Any, tokenizer: BackboneTokenizer) -> tuple[int, ...]:
    """What the decoder begins with: its start token, then what every answer begins with, if anything does: the token
    that generation forces, or what the tokenizer puts before a text (BART's `<s>`).

    Raises UnsupportedBackbone where no start token is named.
    """
    settings = (model.generation_config, model.config)
    first = _setting(settings, "decoder_start_token_id", None)
    if first is None:
        raise UnsupportedBackbone("this model names no `decoder_start_token_id`", param="model")
    forced = _setting(settings, "forced_bos_token_id", None)
    return (first, *(tokenizer.begin_ids if forced is None else (forced,)))


@torch.no_grad()
def probe_seq2seq(model: Any, *, start: tuple[int, ...], vocab_size: int, context: int) -> ProbeResult:
    """Find the form of the batched forward that agrees with the model's own.

    Raises:
        UnsupportedBackbone: not even rows alone agree with the plain forward by token ids.
    """
    cases = _cases(model, vocab_size, min(_LONG, context // 2))
    reference = Seq2SeqReference(model, start, slots=len(cases), places=0)
    wanted = [_wanted(reference, case) for case in cases]
    tolerance = RELATIVE_TOLERANCE[model.dtype] * max(1.0, *(float(of.abs().max()) for rows in wanted for of in rows))
    _check_reference(model, start, cases[1], wanted[1][0], tolerance)
    reason = ""
    for shared, aligned, scaled in product((True, False), repeat=3):
        try:
            forward = Seq2SeqForward(model, start, aligned, not shared, scaled)
            runner = Seq2SeqRunner(forward, slots=len(cases) + 1, places=2 * _LONG + 16)
            deviation = _deviation(runner, cases, wanted, tolerance)
        except MODEL_ERRORS as error:
            reason = f"the batched forward cannot run: {type(error).__name__}"
            continue
        if deviation <= tolerance:
            return ProbeResult(None, deviation, "", kv_shape=runner.kv_shape, seq2seq=forward)
        reason = f"logits of the batched forward differ by {deviation:.2g} (tolerance {tolerance:.2g})"
    return ProbeResult(None, 0.0, reason)


def _check_reference(model: Any, start: tuple[int, ...], case: _Case, wanted: Tensor, tolerance: float) -> None:
    """The case without vectors, by token ids alone."""
    device = wanted.device
    ids, first = torch.tensor([case.row.ids], device=device), torch.tensor([start], device=device)
    plain = model(input_ids=ids, decoder_input_ids=first).logits[0, -1].float()
    deviation = float((plain - wanted).abs().max())
    if not deviation <= tolerance:
        raise UnsupportedBackbone(
            f"this model's logits by embeddings and by token ids differ by {deviation:.2g} (tolerance "
            f"{tolerance:.2g}): it cannot be served faithfully",
            param="model",
        )


def _setting(settings: Sequence[Any], name: str, default: int | None) -> int | None:
    found = (getattr(of, name, None) for of in settings)
    return next((value for value in found if isinstance(value, int)), default)


def _cases(model: Any, vocab_size: int, long: int) -> list[_Case]:
    generator = torch.Generator().manual_seed(20)
    encoder, decoder = model.get_input_embeddings().weight, model.get_decoder().get_input_embeddings().weight

    def tokens(count: int) -> list[int]:
        return random_tokens(generator, vocab_size, count)

    cases = []
    for size, text, before in zip(_ENCODER, (*_TEXTS, max(1, long - 5)), _DECODER, strict=True):
        slots, half = [-1 - j for j in range(size)], size // 2
        words = ((tuple(tokens(1)), tuple(tokens(3))), (tuple(tokens(2)),))
        cases.append(
            _Case(
                Row((*slots[:half], *tokens(text), *slots[half:])),
                EncoderDecoderPrompt(
                    encoder[tokens(size)] * 1.5 if size else None, decoder[tokens(before)] * 1.5 if before else None
                ),
                tokens(_STEPS),
                Verbalizer(("a", "b"), (("a", "A"), ("b",)), words, terminated=False, apart=True),
            )
        )
    return cases


def _wanted(reference: Seq2SeqReference, case: _Case) -> list[Tensor]:
    """Logits of what comes first and after each of the continuation's tokens, and the label scores."""
    read = reference.encode(case.row, case.prompt)
    logits = reference.logits(read, reference.begin(case.prompt, case.continuation))[-_STEPS - 1 :]
    return [*logits, reference.score(case.row, case.prompt, case.words)]


def _deviation(runner: Runner, cases: list[_Case], wanted: list[list[Tensor]], tolerance: float) -> float:
    """Largest difference; where label scores are off already, nothing more is run. Rows come in two prefills, a step
    apart, and change slots, so that their lengths mix."""
    scored = runner.prefill(0, [_item(case, case.words) for case in cases])
    worst = max(_worst(of, rows[-1]) for of, rows in zip(scored.scores, wanted, strict=True))
    if not worst <= tolerance:
        return worst
    device = scored.logits.device
    done = [0] * len(cases)  # tokens fed to each row

    def step(places: list[int]) -> float:
        fed = torch.tensor([cases[p].continuation[done[p]] for p in places], device=device)
        lengths = torch.tensor([cases[p].row.total + done[p] for p in places], device=device)
        logits = runner.decode(fed, lengths, int(lengths.max()))
        for p in places:
            done[p] += 1
        return max(_worst(of, wanted[p][done[p]]) for of, p in zip(logits, places, strict=True))

    first = runner.prefill(0, [_item(case) for case in cases[:2]])
    worst = max(worst, *(_worst(of, wanted[p][0]) for p, of in enumerate(first.logits)))
    worst = max(worst, step([0, 1]))
    more = runner.prefill(2, [_item(case) for case in cases[2:]])
    worst = max(worst, *(_worst(of, wanted[p][0]) for p, of in enumerate(more.logits, 2)))
    worst = max(worst, step([0, 1, 2, 3]))
    spare = len(cases)
    for source, target in ((1, spare), (3, 1), (spare, 3)):
        runner.move(source, target, 2 * _LONG)
    return max(worst, step([0, 3, 2]))


def _item(case: _Case, words: Verbalizer | None = None) -> PrefillItem:
    return PrefillItem(case.row, case.prompt.encoder, verbalizer=words, decoder=case.prompt)


def _worst(got: Tensor | None, wanted: Tensor) -> float:
    assert got is not None
    difference = float((got - wanted).abs().max())
    return difference if difference == difference else float("inf")
