"""Learning on both sides of an encoder-decoder: PEFT's losses step by step, and jobs from rows to mixed answers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import MultitaskPromptTuningConfig, TaskType, get_peft_model

from app.backbone import Backbone, Row, answer_logprobs, default_bos, encode_row, generate_greedy, parse_template
from app.backbone.soft_prompt import EncoderDecoderPrompt, to_tensors
from app.engine.answers import Answer, Ask
from app.errors import CapabilityMissing, ContextTooLong
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.data import Example
from app.training.examples import Batches, Encoded, Encoder
from app.training.methods.prompt_tuning import PlainPrompt
from app.training.methods.sides import BothSides
from app.training.runs import CLIP_NORM, Judgement, Run
from app.training.schedule import Schedule
from tests.architectures import build_backbone
from tests.cotraining import Hearer
from tests.engines import serving
from tests.families import workshop
from tests.training_data import mood_rows

SIZE, STEPS, RATE = 5, 20, 0.05
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def pefts_model(backbone: Backbone, start: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """(PEFT's model with vectors before both sides, its matrix [2 P, H]). Of PEFT's methods only multitask tuning reads
    the decoder's half of `num_transformer_submodules=2`; with a product of ones it is prompt tuning."""
    config = MultitaskPromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=SIZE,
        num_transformer_submodules=2,
        num_tasks=1,
        num_ranks=1,
        tokenizer_name_or_path=None,
    )
    wrapped = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    encoder = wrapped.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(start)
        for factor in (encoder.prefix_task_cols, encoder.prefix_task_rows):
            factor.fill_(1.0).requires_grad_(False)
    return wrapped, encoder.embedding.weight


def begin(backbone: Backbone) -> torch.Tensor:
    draw = torch.randn(2 * SIZE, backbone.hidden_size, generator=torch.Generator().manual_seed(5))
    return draw * backbone.embedding_rms


def rows_of(backbone: Backbone) -> list[Encoded]:
    template = parse_template(f"<prompt:{SIZE}>{{text}}")
    encoder = Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), None, 128)
    rows = enumerate(mood_rows(), start=1)
    examples = [Example(n, {"text": row["text"] * (1 + n % 3)}, output=f"{row['label']} as such") for n, row in rows]
    return [encoder.encode(example) for example in examples]


def pefts_inputs(backbone: Backbone, batch: list[Encoded]) -> dict[str, torch.Tensor]:
    texts = [[index for index in one.row.ids if index >= 0] for one in batch]
    ids = torch.zeros(len(batch), max(map(len, texts)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(batch), max(len(one.answer) for one in batch)), -100)
    start = backbone.decoder_start
    fed = torch.full((len(batch), labels.shape[1] + len(start) - 1), backbone.model.config.pad_token_id)
    padded = torch.full_like(fed, -100)
    for i, (text, one) in enumerate(zip(texts, batch, strict=True)):
        ids[i, : len(text)], mask[i, : len(text)] = torch.tensor(text), 1
        whole = torch.tensor([*start, *one.answer[:-1]])
        fed[i, : len(whole)] = whole
        padded[i, len(start) - 1 : len(whole)] = torch.tensor(one.answer)
    embeds = backbone.model.get_decoder().get_input_embeddings()(fed)
    return {"input_ids": ids, "attention_mask": mask, "decoder_inputs_embeds": embeds, "labels": padded}


@pytest.mark.parametrize("name", ["t5", "t5_gated", "bart"])
def test_answers_with_vectors_on_both_sides_equal_pefts(name: str) -> None:
    backbone = build_backbone(name)
    start = begin(backbone)
    wrapped, _ = pefts_model(backbone, start)
    batch = rows_of(backbone)[:5]
    prompt = EncoderDecoderPrompt(start[:SIZE], start[SIZE:])
    found = answer_logprobs(backbone, [one.row for one in batch], [prompt] * 5, [one.answer for one in batch])
    inputs = pefts_inputs(backbone, batch)
    with torch.no_grad():
        done = wrapped(**inputs, task_ids=torch.zeros(5, dtype=torch.int64))
    read = done.logits[:, SIZE:].log_softmax(-1)
    for i, log_probs in enumerate(found):
        places = (inputs["labels"][i] >= 0).nonzero()[:, 0]
        wanted = read[i, places, inputs["labels"][i][places]]
        assert torch.allclose(log_probs, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_losses_of_twenty_steps_on_both_sides_equal_pefts(name: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    rows, start = rows_of(backbone), begin(backbone)
    schedule = Schedule(batch_size=4, epochs=1.0, steps=STEPS, learning_rate=RATE, num_virtual_tokens=SIZE, seed=2)
    hearer, falling = Hearer(), iter(range(10**6, 0, -1))
    learner = BothSides(PlainPrompt(start[:SIZE], 1.0), PlainPrompt(start[SIZE:], 1.0))
    run = Run(learner, rows, None, schedule, judge=lambda _: Judgement(0.0, next(falling)), listener=hearer)
    checkpoints = Checkpoints(tmp_path, attempt=1, identity="")
    CoTrainer(backbone, [run], watcher=hearer, checkpoints=checkpoints, checkpoint_s=60).run()
    found = [hearer.losses[step] for step in range(1, STEPS + 1)]

    wrapped, weight = pefts_model(backbone, start)
    optimizer = torch.optim.AdamW([weight], weight_decay=0.0)
    order = Batches(tuple(one.length for one in rows), schedule.batch_size, schedule.seed).from_step(0)
    wanted = []
    for step in range(STEPS):
        batch = [rows[place] for place in next(order)]
        loss = wrapped(**pefts_inputs(backbone, batch), task_ids=torch.zeros(len(batch), dtype=torch.int64)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight], CLIP_NORM)
        optimizer.param_groups[0]["lr"] = RATE * schedule.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        wanted.append(float(loss.detach()))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found[-1] < 0.9 * found[0]


METHODS: dict[str, dict[str, Any]] = {
    "plain": {"type": "prompt_tuning", "decoder_virtual_tokens": 3, "reparametrization": "none"},
    "residual": {"type": "prompt_tuning", "decoder_virtual_tokens": 2, "init": "labels"},
    "keys": {"type": "prefix_tuning"},
    "network": {"type": "prefix_tuning", "reparametrization": "mlp", "init": "text", "init_text": "Is it good?"},
    "bare": {"type": "prompt_tuning"},
}
PARTS = {
    "plain": {"prompt", "decoder_prompt"},
    "residual": {"prompt", "decoder_prompt"},
    "keys": {"decoder_prefix"},
    "network": {"decoder_prefix"},
    "bare": {"prompt"},
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
async def test_versions_of_every_form_are_learned_and_answer_together_as_alone(
    name: str, redis_url: str, tmp_path: Path
) -> None:
    with workshop(name, redis_url, tmp_path) as shop:
        labelled = mood_rows(24)
        free = [{"text": f"number {n}", "output": "a plain answer"} for n in range(24)]
        asks = []
        for place, (task, method) in enumerate(METHODS.items()):
            for kind, rows in (("labels", labelled), ("text", free)):
                data = {"inline": rows}
                job = shop.train(task=f"{task}.{kind}", training_data=data, validation_data=data, method=method)
                assert job.status == "succeeded", job.error
                losses = shop.dev_losses(job)
                assert min(losses) < losses[0]
                prompt = shop.prompt(f"{task}.{kind}")
                assert set(to_tensors(prompt.learned)) == PARTS[task]
                asks.append(Ask(prompt, {"text": "a warm story " * (1 + place)}, prompt.decoding, None))
        async with serving(shop.backbone) as service:
            answers = await service.answer_together(asks, timeout_s=60)
        for ask, answer in zip(asks, answers, strict=True):
            assert isinstance(answer, Answer)
            row = encode_row(shop.backbone.tokenizer, ask.prompt.template, ask.prompt.bos, ask.input)
            if ask.prompt.verbalizer is None:
                (alone,) = generate_greedy(shop.backbone, [row], [ask.prompt.learned], max_tokens=12)
                shared = min(len(answer.token_ids), len(alone.tokens))
                assert tuple(answer.token_ids[:shared]) == alone.tokens[:shared]
            else:
                assert answer.log_scores is not None
                async with serving(shop.backbone) as service:
                    own = await service.answer(ask.prompt, ask.input, decoding=ask.prompt.decoding, timeout_s=30)
                assert own.log_scores == pytest.approx(answer.log_scores, abs=1e-4)


def test_training_on_a_prefix_again_keeps_its_wording(redis_url: str, tmp_path: Path) -> None:
    with workshop("t5", redis_url, tmp_path) as shop:
        data = {"inline": mood_rows(24)}
        method = {"type": "prefix_tuning"}
        shop.train(task="mood", training_data=data, template="<prompt:6>Review: {text}", method=method)
        assert shop.store.get_version("mood", 1).meta.template == "Review: {text}"
        job = shop.train(task="mood", training_data=data, method=method)
        assert job.status == "succeeded", job.error
        version = shop.store.get_version("mood", 2)
        assert version.meta.template == "Review: {text}"
        assert version.meta.tensors is not None
        assert version.meta.tensors["decoder_prefix"][3] == 6


def test_prefix_starts_as_the_decoders_own_keys_of_words() -> None:
    backbone = build_backbone("t5")
    assert backbone.probed.seq2seq is not None
    ids = (40, 41, 42)
    with torch.no_grad():
        keys = backbone.probed.seq2seq.keys_of((1,), ids).data
    shape = backbone.decoder_kv_shape
    assert shape is not None
    assert tuple(keys.shape) == shape.prefix(3)
    layer = backbone.model.decoder.block[0].layer[0]
    states = layer.layer_norm(backbone.model.shared.weight[list(ids)])
    wanted = layer.SelfAttention.k(states).view(3, shape.groups, shape.width).transpose(0, 1)
    assert torch.allclose(keys[0, 0], wanted, atol=1e-5)


def test_decoders_vectors_elsewhere_are_refused_at_submission(redis_url: str, tmp_path: Path) -> None:
    with workshop("bert", redis_url, tmp_path) as shop, pytest.raises(CapabilityMissing) as refused:
        shop.train(
            task="mood",
            training_data={"inline": mood_rows(24)},
            method={"type": "prompt_tuning", "decoder_virtual_tokens": 3},
        )
    assert refused.value.param == "method.decoder_virtual_tokens"


def test_decoders_vectors_count_in_the_context_of_training(redis_url: str, tmp_path: Path) -> None:
    with workshop("bart", redis_url, tmp_path) as shop:
        rows = [{"text": "so " * 200, "output": "yes"} for _ in range(8)]
        method = {"type": "prompt_tuning", "decoder_virtual_tokens": 40, "reparametrization": "none"}
        job = shop.train(task="long", training_data={"inline": rows}, method=method)
        assert job.status == "succeeded", job.error
        told = [event.message for event in shop.jobs.events(job.id) if event.type == "warning"]
        assert any("cut to the context of 88 tokens" in message for message in told)
        with pytest.raises(ContextTooLong):
            shop.train(
                task="none",
                training_data={"inline": rows},
                template="<prompt:6>" + "so " * 100 + "{text}",
                method={"type": "prompt_tuning", "decoder_virtual_tokens": 200},
            )


def test_gradients_of_pefts_prefix_equal_pefts() -> None:
    from peft import PrefixTuningConfig

    from app.backbone.families.peft_prefix import prompt_from_peft

    backbone = build_backbone("t5_gated")
    config = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=SIZE)
    wrapped = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    row, answer = Row((7, 8, 9, 1)), (40, 41, 42, 1)
    fed = torch.tensor([[*backbone.decoder_start, *answer[:-1]]])
    logits = wrapped(input_ids=torch.tensor([row.ids]), attention_mask=torch.ones(1, 4), decoder_input_ids=fed).logits
    wanted_loss = -logits[0].log_softmax(-1)[range(4), list(answer)].sum()
    (wanted,) = torch.autograd.grad(wanted_loss, weight)
    own = weight.detach().clone().requires_grad_()
    assert backbone.decoder_kv_shape is not None
    (log_probs,) = answer_logprobs(backbone, [row], [prompt_from_peft(own, backbone.decoder_kv_shape)], [answer])
    (found,) = torch.autograd.grad(-log_probs.sum(), own)
    assert torch.allclose(-log_probs.sum(), wanted_loss, atol=1e-4)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
