"""Promises of the alternatives: they change what they should, in a model of their own, by the loss of prompts."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

import pytest
import torch

from app.backbone import Backbone
from app.compare.budget import Budget
from app.compare.setting import Setting
from app.compare.weights import Copy, accumulate, fit_weights
from app.errors import CapabilityMissing
from app.training.objective import label_scores
from tests.architectures import build_backbone
from tests.unit.compare.conftest import fresh, mood_task

BUDGET = Budget(steps=3, batch_size=4)


def changed(copy: Copy, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, of in copy.backbone.model.named_parameters() if not torch.equal(of, before[name])}


def trained(name: str, rate: float = 1e-2) -> tuple[Copy, dict[str, torch.Tensor], Any]:
    copy = Copy.open(fresh, name)
    before = {of: part.detach().clone() for of, part in copy.backbone.model.named_parameters()}
    fitted = fit_weights(Setting(mood_task(), copy.backbone), copy, BUDGET, rate=rate, seed=0)
    return copy, before, fitted


def test_full_fine_tuning_changes_every_weight() -> None:
    copy, before, fitted = trained("full")
    assert changed(copy, before) == set(before)
    assert fitted.trained == sum(part.numel() for part in before.values())


def test_last_layers_change_those_alone() -> None:
    copy, before, _ = trained("last_layers")
    assert changed(copy, before) == {name for name in before if ".layers.2." in name}


def test_lora_changes_its_own_factors_alone() -> None:
    copy, before, fitted = trained("lora")
    assert changed(copy, before) == {name for name in before if "lora_" in name}
    assert set(fitted.tensors) == changed(copy, before)
    assert len([name for name in fitted.tensors if "lora_A" in name]) == 3 * 7
    assert not any("lm_head" in name for name in fitted.tensors)


@pytest.mark.parametrize("name", ["full", "last_layers", "lora"])
def test_shared_model_stays_as_it_is(name: str, backbone: Backbone) -> None:
    before = {of: part.clone() for of, part in backbone.model.state_dict().items()}
    trained(name)
    assert all(torch.equal(part, before[of]) for of, part in backbone.model.state_dict().items())
    assert not any(part.requires_grad for part in backbone.model.parameters())


@pytest.mark.parametrize("name", ["full", "lora"])
def test_merged_model_answers_as_the_trained_one(name: str) -> None:
    copy, _, fitted = trained(name)
    copy.put(fitted.tensors)
    setting = Setting(mood_task(), copy.backbone)
    verbalizer = setting.bare.verbalizer
    assert verbalizer is not None
    rows = setting.encoded(setting.bare)
    learned = label_scores(copy.backbone, verbalizer, None, rows)
    merged = copy.merged()
    assert not any("lora" in of for of, _ in merged.model.named_parameters())
    assert not any(part.requires_grad for part in merged.model.parameters())
    assert merged.probed.decoder is not None
    torch.testing.assert_close(label_scores(merged, verbalizer, None, rows), learned, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(label_scores(fresh(), verbalizer, None, rows), learned, atol=1e-2)


def test_gradient_of_every_weight_is_that_of_the_plain_model() -> None:
    copy = Copy.open(fresh, "full")
    setting = Setting(mood_task(), copy.backbone)
    rows = [setting.bare.encode(e) for e in setting.task.train[:5]]
    loss = accumulate(copy.backbone, rows, setting.bare.verbalizer)
    plain = fresh().model.requires_grad_(True)
    verbalizer = setting.bare.verbalizer
    assert verbalizer is not None
    tokens = [word[0] for ((word,),) in [(of,) for of in verbalizer.ids]]
    total = torch.zeros(())
    for one in rows:
        log_probs = plain(input_ids=torch.tensor([one.row.ids])).logits[0, -1].float().log_softmax(-1)
        total = total + torch.nn.functional.cross_entropy(log_probs[tokens][None], torch.tensor([one.label]))
    (total / len(rows)).backward()
    assert loss == pytest.approx(float(total.detach()) / len(rows), rel=1e-4)
    for name, parameter in plain.named_parameters():
        mine = copy.parameters[name].grad
        torch.testing.assert_close(mine, parameter.grad, atol=1e-4, rtol=1e-3)


def test_best_evaluation_is_what_is_kept() -> None:
    copy, _, fitted = trained("full", rate=1e-3)
    copy.put(fitted.tensors)
    setting = Setting(mood_task(), copy.backbone)
    judged = setting.judge(setting.bare)(None)
    assert (judged.score, judged.loss) == pytest.approx((fitted.judgement.score, fitted.judgement.loss), abs=1e-5)


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CapabilityMissing, match="pip install 'chorus-serve\\[compare\\]'"):
        Copy.open(fresh, "lora")


def test_encoder_decoder_is_left_out_with_the_reason() -> None:
    with pytest.raises(CapabilityMissing, match="decoders"):
        Copy.open(lambda: build_backbone("t5"), "full")


def test_names_of_layers_are_found_in_another_shape() -> None:
    def gpt2() -> Backbone:
        found = build_backbone("gpt2")
        return replace(found, model=found.model)

    copy = Copy.open(gpt2, "last_layers")
    for parameter in copy.backbone.model.parameters():
        parameter.requires_grad_(False)
    assert copy.parameters
    assert all(".h.2." in name for name in copy.parameters)
