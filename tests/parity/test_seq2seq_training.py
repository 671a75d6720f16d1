"""From rows to answers on an encoder-decoder: loaded from its files, trained, published, served by the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from app.backbone import BackboneConfig, encode_row, generate_greedy, load_backbone, score_labels
from app.backbone.families.recognise import family_of_config
from app.errors import UnsupportedBackbone
from tests.architectures import build_model
from tests.engines import serving
from tests.families import save_backbone, workshop
from tests.training_data import mood_rows


@pytest.mark.anyio
async def test_labels_on_t5_are_learned_published_and_served(redis_url: str, tmp_path: Path) -> None:
    with workshop("t5", redis_url, tmp_path) as shop:
        rows = mood_rows(24)
        job = shop.train(task="mood", training_data={"inline": rows}, validation_data={"inline": rows})
        assert job.status == "succeeded"
        losses = shop.dev_losses(job)
        assert min(losses) < losses[0]
        version = shop.store.get_version("mood", 1)
        assert (version.meta.backbone.family, version.meta.template) == ("seq2seq", "<prompt:6>{text}")
        prompt = shop.prompt("mood")
        row = encode_row(shop.backbone.tokenizer, prompt.template, prompt.bos, {"text": "I love it"})
        assert row.ids[-1] == shop.backbone.tokenizer.eos_ids[0]
        assert prompt.verbalizer is not None
        (wanted,) = score_labels(shop.backbone, [row], [prompt.learned], [prompt.verbalizer])
        async with serving(shop.backbone) as service:
            await service.check_ready()
            await service.admit(prompt)
            answer = await service.answer(prompt, {"text": "I love it"}, decoding=prompt.decoding, timeout_s=30)
        assert answer.label in ("good", "bad")
        assert answer.log_scores is not None
        assert list(answer.log_scores.values()) == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.anyio
async def test_free_text_on_t5_is_learned_published_and_served(redis_url: str, tmp_path: Path) -> None:
    with workshop("t5", redis_url, tmp_path) as shop:
        rows = [{"text": f"number {n}", "output": "a plain answer"} for n in range(24)]
        job = shop.train(task="echo", training_data={"inline": rows}, validation_data={"inline": rows})
        losses = shop.dev_losses(job)
        assert min(losses) < 0.7 * losses[0]
        prompt = shop.prompt("echo")
        row = encode_row(shop.backbone.tokenizer, prompt.template, prompt.bos, {"text": "number 3"})
        (wanted,) = generate_greedy(shop.backbone, [row], [prompt.learned], max_tokens=prompt.decoding.max_tokens)
        async with serving(shop.backbone) as service:
            await service.admit(prompt)
            answer = await service.answer(prompt, {"text": "number 3"}, decoding=prompt.decoding, timeout_s=30)
        assert tuple(answer.token_ids[: len(wanted.tokens)]) == wanted.tokens


def test_words_of_labels_are_found_for_an_encoder_decoder(redis_url: str, tmp_path: Path) -> None:
    with workshop("t5", redis_url, tmp_path) as shop:
        job = shop.train(task="mood", training_data={"inline": mood_rows(24)}, verbalizer="search")
        assert job.status == "succeeded"
        words = shop.store.get_version("mood", 1).meta.verbalizer
        assert words is not None
        assert all(words[label] for label in ("good", "bad"))


def test_fingerprint_of_an_encoder_decoder_when_it_begins_otherwise_is_another(tmp_path: Path) -> None:
    folder = save_backbone("t5", tmp_path / "t5")
    before = load_backbone(BackboneConfig(source=str(folder))).fingerprint
    for name in ("generation_config.json", "config.json"):
        text = (folder / name).read_text()
        assert '"decoder_start_token_id": 2' in text
        (folder / name).write_text(text.replace('"decoder_start_token_id": 2', '"decoder_start_token_id": 0'))
    assert load_backbone(BackboneConfig(source=str(folder))).fingerprint != before


def test_folder_that_lacks_the_decoder_is_refused(tmp_path: Path) -> None:
    folder = save_backbone("t5", tmp_path / "t5")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.block.1.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedBackbone, match=r"lack `decoder\.block\.1"):
        load_backbone(BackboneConfig(source=str(folder)))


def test_family_is_read_from_the_class_that_was_saved() -> None:
    config = build_model("bert").config
    assert family_of_config(config, "bert") == "masked"
    config.architectures = ["BertLMHeadModel"]
    assert family_of_config(config, "bert") == "causal"
    assert family_of_config(build_model("t5").config, "t5") == "seq2seq"


def test_model_of_no_known_family_is_refused() -> None:
    with pytest.raises(UnsupportedBackbone, match="not a language model"):
        family_of_config(ViTConfig(), "pictures")
