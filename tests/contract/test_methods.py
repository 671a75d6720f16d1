"""What every method of learning a prompt promises the trainer, and that each `type` of a request has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.backbone.soft_prompt import to_tensors
from app.training.methods import METHODS, Learner, Surroundings
from app.training.methods.base import load_state, state_of
from app.training.requests import PromptTuning

P, H, V = 6, 16, 50

CONFIGS: dict[str, list[Any]] = {
    "prompt_tuning": [
        PromptTuning(init=init, reparametrization=form, init_text="some words" if init == "text" else None)
        for init in ("random", "vocab", "text", "labels")
        for form in ("none", "residual_mlp")
    ],
}
EVERY = [pytest.param(kind, config, id=f"{kind}-{n}") for kind, of in CONFIGS.items() for n, config in enumerate(of)]


def surroundings(seed: int = 0, **changes: Any) -> Surroundings:
    generator = torch.Generator().manual_seed(7)
    known: dict[str, Any] = {
        "num_virtual_tokens": P,
        "embedding": torch.randn(V, H, generator=generator) * 0.1,
        "frequent": [3, 1, 4, 15, 9, 2, 6, 5],
        "label_tokens": [[10, 11], [12]],
        "text_tokens": [20, 21],
        "generator": torch.Generator().manual_seed(seed),
    }
    return Surroundings(**(known | changes))


def begin(kind: str, config: Any, **changes: Any) -> Learner:
    return METHODS[kind].begin(config, surroundings(**changes))


def take_steps(learner: Learner, count: int = 3) -> None:
    target = torch.linspace(-1, 1, P * H).view(P, H)
    parameters = [parameter for _, parameter in learner.named_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for _ in range(count):
        optimizer.zero_grad()
        (learner.prompt() - target).pow(2).sum().backward()
        optimizer.step()


def test_every_method_is_covered() -> None:
    assert set(CONFIGS) == set(METHODS)


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_prompt_at_the_start_has_the_asked_shape_and_is_finite(kind: str, config: Any) -> None:
    prompt = begin(kind, config).prompt()
    assert (prompt.shape, prompt.dtype) == ((P, H), torch.float32)
    assert torch.isfinite(prompt).all()


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_start_depends_on_the_seed_alone(kind: str, config: Any) -> None:
    first, again = begin(kind, config, seed=5), begin(kind, config, seed=5)
    for name, tensor in state_of(first).items():
        assert torch.equal(tensor, state_of(again)[name])


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_every_parameter_is_trainable_and_has_a_learning_rate(kind: str, config: Any) -> None:
    learner = begin(kind, config)
    before = state_of(learner)
    assert set(learner.learning_rates(None)) == set(before)
    assert all(rate > 0 for rate in learner.learning_rates(None).values())
    take_steps(learner)
    for name, parameter in learner.named_parameters():
        assert parameter.requires_grad
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_learning_rate_of_the_user_is_the_vectors(kind: str, config: Any) -> None:
    assert begin(kind, config).learning_rates(0.25)["vectors"] == 0.25


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_learning_rates_scale_with_the_embeddings(kind: str, config: Any) -> None:
    small = begin(kind, config).learning_rates(None)["vectors"]
    large = begin(kind, config, embedding=surroundings().embedding * 10).learning_rates(None)["vectors"]
    assert large == pytest.approx(10 * small)


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_the_prompt_after_training_is_folded_into_the_tensors_of_a_blob(kind: str, config: Any) -> None:
    learner = begin(kind, config)
    take_steps(learner)
    folded = to_tensors(learner.prompt())
    assert {name: (tuple(part.shape), part.dtype) for name, part in folded.items()} == {
        "prompt": ((P, H), torch.float32)
    }


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_state_put_back_gives_the_same_prompt(kind: str, config: Any) -> None:
    learner = begin(kind, config)
    take_steps(learner)
    other = begin(kind, config, seed=9)
    load_state(other, state_of(learner))
    assert torch.equal(other.prompt(), learner.prompt())


@pytest.mark.parametrize("form", ["none", "residual_mlp"])
def test_prompt_tuning_starts_at_its_initial_vectors(form: str) -> None:
    embedding = surroundings().embedding

    def start(init: str, **more: Any) -> torch.Tensor:
        config = PromptTuning.model_validate({"init": init, "reparametrization": form} | more)
        return begin("prompt_tuning", config).prompt().detach()

    assert torch.allclose(start("text", init_text="x"), embedding[[20, 21] * 3])
    drawn = start("vocab")
    assert torch.allclose(start("labels"), torch.cat([embedding[[10, 12, 11]], drawn[:3]]))
    allowed = embedding[[3, 1, 4, 15, 9, 2, 6, 5]]
    assert all(any(torch.allclose(row, other) for other in allowed) for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) == P
    assert start("random").std() == pytest.approx(float(embedding.std()), rel=0.3)


def test_vocab_without_rows_draws_from_the_whole_vocabulary() -> None:
    prompt = begin("prompt_tuning", PromptTuning(init="vocab"), frequent=[]).prompt()
    assert torch.isfinite(prompt).all()


def test_labels_of_free_text_start_as_vocab() -> None:
    config = PromptTuning(init="labels", reparametrization="none")
    free = begin("prompt_tuning", config, label_tokens=[])
    vocab = begin("prompt_tuning", PromptTuning(init="vocab", reparametrization="none"))
    assert torch.equal(free.prompt(), vocab.prompt())
