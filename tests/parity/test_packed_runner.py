"""The packed runner equals the model's own forward, whatever its rows share and whoever computes its steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.backbone import decoder
from app.backbone.backbone import wrap_model
from app.backbone.decoder import Decoder
from app.backbone.decoder_steps import TorchSteps
from app.backbone.kv import PrefixKV
from app.backbone.packed_runner import PackedRunner
from app.backbone.reference import ReferenceRunner
from app.backbone.rows import Row
from app.backbone.runner import PrefillItem
from app.backbone.verbalizer import Verbalizer
from app.errors import UnsupportedBackbone
from tests.architectures import VOCABULARY, build_backbone, build_model

MODELS = ["llama", "qwen2", "qwen3", "mistral", "narrow_heads"]
FORMS = ["native", "torch", "static"]
LABELS = Verbalizer(("a", "b"), (("a", "A"), ("b",)), (((5,), (6, 7, 8)), ((9, 10),)), terminated=False)
TOLERANCE = 1e-4


def packed(model: Any, form: str, *, slots: int, places: int) -> PackedRunner:
    """The packed runner with compiled steps (plain ones without a compiler), with plain ones, or with plain ones and
    decode steps of fixed shapes, as on a GPU."""
    steps = None if form == "native" else TorchSteps()
    return PackedRunner(Decoder(model, steps=steps), slots=slots, places=places, static=form == "static")


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def fan_out(width: int) -> list[PrefillItem]:
    """Two groups that share a text (suffix prompts and a hand-written one, labels or not), and single rows."""
    first, second = tokens(40, 1), tokens(3, 2)
    items = []
    for text in (first, second):
        for i, (size, words) in enumerate(((5, LABELS), (0, None), (9, None), (2, LABELS))):
            row = Row((*text, *(-1 - j for j in range(size)), *tokens(2, 10 + i)))
            vectors = torch.randn(size, width, generator=torch.Generator().manual_seed(i)) if size else None
            items.append(PrefillItem(row, vectors, verbalizer=words, trunk=len(text) if i else 0))
        items.append(PrefillItem(Row(tokens(11, 20)), None))
    return items


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_share_a_text_equal_each_row_alone(name: str, form: str) -> None:
    model = build_model(name)
    items = fan_out(model.config.hidden_size)
    runner = packed(model, form, slots=16, places=96)
    reference = ReferenceRunner(model, slots=16, places=96)
    with torch.inference_mode():
        got, wanted = runner.prefill(2, items), reference.prefill(2, items)
        torch.testing.assert_close(got.logits, wanted.logits, atol=TOLERANCE, rtol=0)
        assert got.tokens == sum(item.row.total - item.trunk + 3 * bool(item.verbalizer) for item in items)
        for ours, theirs in zip(got.scores, wanted.scores, strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
        lengths = []
        for slot, i in enumerate(i for i, item in enumerate(items) if item.verbalizer is None):
            for each in (runner, reference):
                each.move(2 + i, slot, items[i].row.total)
            lengths.append(items[i].row.total)
        for step in range(3):
            fed, at = torch.tensor(tokens(len(lengths), 30 + step)), torch.tensor(lengths) + step
            ours, theirs = (each.decode(fed, at, int(at.max())) for each in (runner, reference))
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("warm", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_rows_that_share_words_before_their_vectors_equal_each_row_alone(form: str, warm: tuple[int, ...]) -> None:
    """`warm`: whose beginning, words and vectors, is there already. What is read of a slot afterwards is right too."""
    model = build_model("llama")
    runner, reference = packed(model, form, slots=6, places=96), ReferenceRunner(model, slots=6, places=96)
    fresh = packed(model, "torch", slots=1, places=96)
    words, items, wanted_prefixes = tokens(20, 1), [], []
    with torch.inference_mode():
        runner.prefill(0, [PrefillItem(Row(tokens(60, 40 + slot))) for slot in range(6)])  # slots have been used
        for i in range(3):
            vectors = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(i))
            beginning = (*words, *(-1 - j for j in range(5)))
            fresh.prefill(0, [PrefillItem(Row(beginning), vectors)])
            prefix = fresh.read_prefix(0, len(beginning))
            assert prefix is not None
            wanted_prefixes.append(prefix)
            row = Row((*beginning, *tokens(3, 10 + i)), len(beginning))
            found = prefix if i in warm else None
            items.append(PrefillItem(row, vectors, found, LABELS if i else None, trunk=len(words) if i else 0))
        got, wanted = runner.prefill(1, items), reference.prefill(1, items)
        torch.testing.assert_close(got.logits, wanted.logits, atol=TOLERANCE, rtol=0)
        for ours, theirs in zip(got.scores[1:], wanted.scores[1:], strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
        for slot, prefix in enumerate(wanted_prefixes, 1):
            read = runner.read_prefix(slot, prefix.length)
            assert read is not None
            torch.testing.assert_close(read.data, prefix.data, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_prefix_in_another_dtype_than_the_model_is_read_as_numbers(form: str) -> None:
    model = build_model("llama").to(torch.bfloat16)
    runner = packed(model, form, slots=2, places=64)
    vectors = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    beginning = tuple(-1 - j for j in range(5))
    row = Row((*beginning, *tokens(4, 2)), len(beginning))
    with torch.inference_mode():
        runner.prefill(0, [PrefillItem(row, vectors)])
        prefix = runner.read_prefix(0, len(beginning))
        assert prefix is not None
        wide = PrefixKV(prefix.data.float())
        wanted = runner.prefill(0, [PrefillItem(row, vectors, prefix)]).logits
        first, second = runner.prefill(0, [PrefillItem(row, vectors, wide), PrefillItem(row, vectors, wide)]).logits
        torch.testing.assert_close(first, wanted[0], atol=0.05, rtol=0.05)
        torch.testing.assert_close(second, wanted[0], atol=0.05, rtol=0.05)
        fed, at = torch.tensor([7, 7]), torch.tensor([row.total, row.total])
        assert torch.isfinite(runner.decode(fed, at, row.total)).all()  # the cast copy is still there


@pytest.mark.parametrize("form", FORMS)
def test_a_freed_slot_full_of_nan_does_not_reach_its_next_row(form: str) -> None:
    model = build_model("llama")
    runner = packed(model, form, slots=2, places=64)
    poison = torch.full((4, model.config.hidden_size), torch.nan)
    clean = PrefillItem(Row(tokens(9, 1)))
    with torch.inference_mode():
        wanted = runner.prefill(0, [clean]).logits
        spoilt = runner.prefill(0, [PrefillItem(Row((*(-1 - j for j in range(4)), *tokens(30, 2)), 4), poison), clean])
        assert not torch.isfinite(spoilt.logits[0]).any()
        assert torch.isfinite(spoilt.logits[1]).all()
        runner.wipe(0)
        torch.testing.assert_close(runner.prefill(0, [clean]).logits, wanted)


def test_a_prompt_evicted_while_its_row_decodes_still_answers_for_it() -> None:
    model = build_model("llama")
    vectors = torch.randn(6, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    row = Row((*(-1 - j for j in range(6)), *tokens(5, 3)), 6)
    fed, lengths = torch.tensor([17]), torch.tensor([row.total])
    runner = PackedRunner(Decoder(model), slots=1, places=32)
    with torch.inference_mode():
        runner.prefill(0, [PrefillItem(row, vectors)])
        wanted, prefix = runner.decode(fed, lengths, row.total), runner.read_prefix(0, 6)
        runner.prefill(0, [PrefillItem(row, vectors, prefix)])
        del prefix  # nobody but the row holds it now
        torch.empty(1 << 20).fill_(torch.nan)
        torch.testing.assert_close(runner.decode(fed, lengths, row.total), wanted, atol=TOLERANCE, rtol=0)


def test_packed_form_in_bfloat16_stays_near_the_models_own() -> None:
    model = build_model("qwen2").to(torch.bfloat16)
    items = [PrefillItem(Row(tokens(n, n)), verbalizer=LABELS) for n in (4, 31, 17)]
    with torch.inference_mode():
        got = PackedRunner(Decoder(model), slots=4, places=64).prefill(0, items)
        wanted = ReferenceRunner(model, slots=4, places=64).prefill(0, items)
    scale = float(wanted.logits.abs().max())
    torch.testing.assert_close(got.logits.float(), wanted.logits, atol=0.04 * scale, rtol=0)


def test_backbone_for_serving_answers_as_before_without_its_plain_weights() -> None:
    model = build_model("qwen2")
    plain = wrap_model(model, build_backbone("qwen2").tokenizer, name="qwen2", identity="0" * 64)
    items = [PrefillItem(Row(tokens(n, n)), verbalizer=LABELS) for n in (4, 31)]
    with torch.inference_mode():
        wanted = plain.runner(slots=2, places=64).prefill(0, items)
        serving = plain.for_serving()
        got = serving.runner(slots=2, places=64).prefill(0, items)
    torch.testing.assert_close(got.logits, wanted.logits)
    assert all(parameter.is_meta for parameter in model.model.layers[0].mlp.parameters())
    assert serving.vocab_size == VOCABULARY
    assert serving.runner_name == "packed"
    with pytest.raises(UnsupportedBackbone, match="laid out for serving"):
        _ = serving.forward


def test_packed_form_without_room_for_it_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_backbone("llama").tokenizer  # shared with other tests: built while there is room
    monkeypatch.setattr(decoder, "_ROOM", 1e9)
    backbone = wrap_model(build_model("llama"), tokenizer, name="llama", identity="0" * 64)
    assert backbone.runner_name == "fast"
