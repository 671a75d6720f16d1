"""From rows to answers on a masked model: loaded from its files, trained, published, served by the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.backbone import BackboneConfig, encode_row, load_backbone, score_labels
from app.backbone.prompt import check_task
from app.errors import CapabilityMissing, InvalidTemplate, UnsupportedBackbone
from tests.architectures import tokenizer_for
from tests.engines import serving
from tests.families import save_backbone, workshop
from tests.prompts import make_prompt
from tests.training_data import mood_rows


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["bert", "roberta"])
async def test_labels_are_learned_published_and_served(name: str, redis_url: str, tmp_path: Path) -> None:
    with workshop(name, redis_url, tmp_path) as shop:
        rows = mood_rows(24)
        job = shop.train(task="mood", training_data={"inline": rows}, validation_data={"inline": rows})
        assert job.status == "succeeded"
        losses = shop.dev_losses(job)
        assert min(losses) < losses[0]
        version = shop.store.get_version("mood", 1)
        assert version.meta.backbone.family == "masked"
        assert version.meta.template == "<prompt:6>{text} It was <mask>."
        prompt = shop.prompt("mood")
        assert prompt.verbalizer is not None
        row = encode_row(shop.backbone.tokenizer, prompt.template, prompt.bos, {"text": "I love it"})
        (wanted,) = score_labels(shop.backbone, [row], [prompt.learned], [prompt.verbalizer])
        async with serving(shop.backbone) as service:
            await service.check_ready()
            await service.admit(prompt)
            answer = await service.answer(prompt, {"text": "I love it"}, decoding=prompt.decoding, timeout_s=30)
        assert answer.log_scores is not None
        assert list(answer.log_scores.values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_words_of_labels_are_found_at_the_mask(redis_url: str, tmp_path: Path) -> None:
    with workshop("bert", redis_url, tmp_path) as shop:
        shop.train(task="mood", training_data={"inline": mood_rows(24)}, verbalizer="search")
        words = shop.store.get_version("mood", 1).meta.verbalizer
        assert words is not None
        assert all(words[label] for label in ("good", "bad"))


def test_jobs_that_a_masked_model_cannot_learn_are_refused_when_submitted(redis_url: str, tmp_path: Path) -> None:
    with workshop("bert", redis_url, tmp_path) as shop:
        with pytest.raises(CapabilityMissing, match="scores labels"):
            shop.train(task="echo", training_data={"inline": [{"text": f"n {n}", "output": "yes"} for n in range(8)]})
        with pytest.raises(InvalidTemplate, match="one `<mask>`"):
            shop.train(task="mood", training_data={"inline": mood_rows()}, template="<prompt>{text} It was")


@pytest.mark.anyio
async def test_a_prompt_without_labels_is_refused_when_it_is_asked(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(source=str(save_backbone("bert", tmp_path / "bert"))))
    with pytest.raises(CapabilityMissing, match="scores labels"):
        check_task(backbone, labels=False)
    prompt = make_prompt(backbone, "<prompt:2>{text} It was <mask>.")
    async with serving(backbone) as service:
        assert not service.capabilities().generation
        with pytest.raises(CapabilityMissing, match="scores labels"):
            await service.answer(prompt, {"text": "so"}, decoding=prompt.decoding, timeout_s=30)


def test_folder_without_a_mask_token_or_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = save_backbone("bert", tmp_path / "bert")
    tokenizer_for("llama").save_pretrained(folder)
    with pytest.raises(UnsupportedBackbone, match="no mask token"):
        load_backbone(BackboneConfig(source=str(folder)))
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("cls.")}, folder / "model.safetensors")
    with pytest.raises(UnsupportedBackbone, match=r"lack `cls\."):
        load_backbone(BackboneConfig(source=str(folder)))


def test_fingerprint_of_a_masked_model_covers_its_padding_index(tmp_path: Path) -> None:
    folder = save_backbone("roberta", tmp_path / "roberta")
    before = load_backbone(BackboneConfig(source=str(folder))).fingerprint
    text = (folder / "config.json").read_text()
    assert '"pad_token_id": 2' in text
    (folder / "config.json").write_text(text.replace('"pad_token_id": 2', '"pad_token_id": 4'))
    assert load_backbone(BackboneConfig(source=str(folder))).fingerprint != before
