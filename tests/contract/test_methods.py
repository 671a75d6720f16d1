"""What every method promises the trainer, by the configurations that a request may give it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from app.backbone.kv import KVShape, PrefixKV
from app.backbone.soft_prompt import to_tensors
from app.errors import CapabilityMissing, InvalidPrompt, NotFound
from app.training.methods import METHODS, LearnedMethod, Learner, SearchedMethod, Surroundings
from app.training.methods.base import load_state, state_of

P, H, V = 6, 16, 50
KV = KVShape(layers=3, groups=2, width=4)
PD = 3  # vectors before a decoder's start
FORMS = {"prompt": (P, H), "prefix": KV.prefix(P), "decoder_prompt": (PD, H), "decoder_prefix": KV.prefix(P)}

STARTS: list[dict[str, Any]] = [
    {"init": "random"},
    {"init": "vocab"},
    {"init": "text", "init_text": "some words"},
    {"init": "labels"},
    {"init": "prompt", "init_prompt": "other@1"},
]
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "prompt_tuning": [start | {"reparametrization": form} for start in STARTS for form in ("none", "residual_mlp")],
    "residual": [{"bottleneck": 5, **start} for start in STARTS],
    "p_tuning": [{}, {"hidden_size": 12}, {"encoder": "lstm"}, {"encoder": "lstm", "num_layers": 1, "hidden_size": 4}],
    "prefix_tuning": [
        {"reparametrization": form, "hidden_size": 10, **start}
        for form in ("none", "mlp")
        for start in ({"init": "vocab"}, {"init": "text", "init_text": "w"}, {"init": "random"}, {"init": "zero"})
    ],
    "multitask": [*STARTS, {"source": ["other@1", "short@2"], "num_ranks": 3}],
    "spot": [{"init_prompt": "other@1"}, {"init_prompt": "short@2"}],
}
SIDES: dict[str, list[dict[str, Any]]] = {
    "prompt_tuning": [
        start | {"reparametrization": form, "decoder_virtual_tokens": PD}
        for start in STARTS
        for form in ("none", "residual_mlp")
    ],
    "prefix_tuning": [{"family": "seq2seq", "reparametrization": form} for form in ("none", "mlp")],
}
"""Configurations on an encoder-decoder, as `begin` reads them."""

CONFIGS = {kind: of + SIDES.get(kind, []) for kind, of in CONFIGS.items()}
EVERY = [pytest.param(kind, config, id=f"{kind}-{n}") for kind, of in CONFIGS.items() for n, config in enumerate(of)]


class KnownSources:
    """Two versions: one as long as the prompt, one shorter."""

    known: dict[str, torch.Tensor] = {  # noqa: RUF012
        "other@1": torch.linspace(-0.2, 0.3, P * H).view(P, H),
        "short@2": torch.linspace(0.3, -0.1, 2 * H).view(2, H),
    }

    def vectors(self, reference: str) -> torch.Tensor:
        if reference not in self.known:
            raise InvalidPrompt(reference)
        return self.known[reference]

    def decoder_vectors(self, reference: str) -> torch.Tensor | None:
        return torch.linspace(-1, 1, 2 * H).view(2, H) if reference == "short@2" else None

    def others(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.known.items()


def keys_of(ids: Sequence[int]) -> PrefixKV:
    """Keys ten times as large as values, as real models have them, each token's its own."""
    data = torch.stack([torch.randn(KV.prefix(1), generator=torch.Generator().manual_seed(int(of))) for of in ids])
    data = data.squeeze(4).permute(1, 2, 3, 0, 4)
    return PrefixKV(data * torch.tensor([10.0, 1.0])[:, None, None, None, None])


def surroundings(seed: int = 0, **changes: Any) -> Surroundings:
    generator = torch.Generator().manual_seed(7)
    known: dict[str, Any] = {
        "num_virtual_tokens": P,
        "embedding": torch.randn(V, H, generator=generator) * 0.1,
        "frequent": [3, 1, 4, 15, 9, 2, 6, 5],
        "label_tokens": [[10, 11], [12]],
        "text_tokens": [20, 21],
        "generator": torch.Generator().manual_seed(seed),
        "kv_shape": KV,
        "keys_of": keys_of,
        "sources": KnownSources(),
    }
    return Surroundings(**(known | changes))


def begin(kind: str, config: dict[str, Any], **changes: Any) -> Learner:
    method = METHODS[kind]
    assert isinstance(method, LearnedMethod)
    config = {"type": kind} | config
    around = surroundings(**changes)
    if config.pop("family", None) or "decoder_virtual_tokens" in config:
        around = replace(around, decoder_embedding=around.embedding.flip(0))
    return method.begin(method.config.model_validate(config), around)


def parts(learner: Learner) -> dict[str, torch.Tensor]:
    return to_tensors(learner.prompt())


def take_steps(learner: Learner, count: int = 3) -> None:
    parameters = [parameter for _, parameter in learner.named_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for _ in range(count):
        optimizer.zero_grad()
        found = torch.cat([part.flatten() for part in parts(learner).values()])
        (found - torch.linspace(-1, 1, len(found))).pow(2).sum().backward()
        optimizer.step()


def test_every_method_is_covered() -> None:
    assert set(CONFIGS) == {kind for kind, method in METHODS.items() if isinstance(method, LearnedMethod)}
    assert {kind for kind, method in METHODS.items() if isinstance(method, SearchedMethod)} == {"hard", "prune"}


@pytest.mark.parametrize("kind", METHODS)
def test_type_is_the_files_name_and_every_option_has_a_default(kind: str) -> None:
    method = METHODS[kind]
    assert method.config().type == kind
    assert type(method).__module__ == f"app.training.methods.{kind}"
    with pytest.raises(ValueError, match="Extra inputs"):
        method.config.model_validate({"type": kind, "no_such_option": 1})


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_prompt_at_the_start_has_the_asked_shape_and_is_finite(kind: str, config: dict[str, Any]) -> None:
    for name, part in parts(begin(kind, config)).items():
        assert (tuple(part.shape), part.dtype) == (FORMS[name], torch.float32)
        assert torch.isfinite(part).all()


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_start_depends_on_the_seed_alone(kind: str, config: dict[str, Any]) -> None:
    first = begin(kind, config, seed=5)
    torch.rand(3)  # what others draw does not matter
    again = begin(kind, config, seed=5)
    for name, tensor in state_of(first).items():
        assert torch.equal(tensor, state_of(again)[name])


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_every_parameter_is_trainable_and_has_a_learning_rate(kind: str, config: dict[str, Any]) -> None:
    learner = begin(kind, config)
    before = state_of(learner)
    assert set(learner.learning_rates(None)) == set(before)
    assert all(rate > 0 for rate in learner.learning_rates(None).values())
    take_steps(learner)
    for name, parameter in learner.named_parameters():
        assert parameter.requires_grad
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_names_of_parameters_are_told_apart_by_a_prefix(kind: str, config: dict[str, Any]) -> None:
    names = [name for name, _ in begin(kind, config).named_parameters()]
    assert not [(one, other) for one in names for other in names if other.startswith(f"{one}.")]


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_learning_rate_of_the_user_is_the_first_parameters(kind: str, config: dict[str, Any]) -> None:
    learner = begin(kind, config)
    first, _ = learner.named_parameters()[0]
    assert learner.learning_rates(0.25)[first] == 0.25


@pytest.mark.parametrize(
    ("kind", "config"), [one for one in EVERY if one.values[0] not in ("p_tuning", "prefix_tuning")]
)
def test_learning_rate_of_vectors_scales_with_the_embeddings(kind: str, config: dict[str, Any]) -> None:
    learner = begin(kind, config)
    first, _ = learner.named_parameters()[0]
    large = begin(kind, config, embedding=surroundings().embedding * 10)
    assert large.learning_rates(None)[first] == pytest.approx(10 * learner.learning_rates(None)[first])


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_encoder_starts_at_the_embeddings_scale_and_its_last_layer_learns_by_it(encoder: str) -> None:
    last = {"mlp": "mlp_head.4.weight", "lstm": "mlp_head.2.weight"}[encoder]
    small = begin("p_tuning", {"encoder": encoder})
    large = begin("p_tuning", {"encoder": encoder}, embedding=surroundings().embedding * 10)
    for learner, times in ((small, 1), (large, 10)):
        rms = parts(learner)["prompt"].detach().pow(2).mean().sqrt()
        assert float(rms) == pytest.approx(times * surroundings().rms, rel=1e-4)
    assert large.learning_rates(None)[last] == pytest.approx(10 * small.learning_rates(None)[last])
    assert large.learning_rates(None)["embedding.weight"] == small.learning_rates(None)["embedding.weight"]
    assert set(small.learning_rates(0.5).values()) == {0.5}


def test_keys_and_values_learn_each_by_the_scale_of_real_ones() -> None:
    rates = begin("prefix_tuning", {}).learning_rates(None)
    assert rates["keys"] == pytest.approx(10 * rates["values"], rel=0.3)


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_the_prompt_after_training_is_folded_into_the_tensors_of_a_blob(kind: str, config: dict[str, Any]) -> None:
    learner = begin(kind, config)
    take_steps(learner)
    folded = parts(learner)
    wanted = {"prompt", "decoder_prompt"} if "decoder_virtual_tokens" in config else {"prompt"}
    if kind == "prefix_tuning":
        wanted = {"decoder_prefix" if "family" in config else "prefix"}
    assert set(folded) == wanted
    for name, part in folded.items():
        assert (tuple(part.shape), part.dtype) == (FORMS[name], torch.float32)
        assert part.is_contiguous()


@pytest.mark.parametrize(("kind", "config"), EVERY)
def test_state_put_back_gives_the_same_prompt_and_the_same_next_steps(kind: str, config: dict[str, Any]) -> None:
    learner = begin(kind, config)
    take_steps(learner)
    other = begin(kind, config, seed=9)
    load_state(other, state_of(learner))
    for _ in range(2):
        for name, part in parts(learner).items():
            assert torch.equal(part, parts(other)[name])
        take_steps(learner)
        take_steps(other)


@pytest.mark.parametrize("kind", ["prompt_tuning", "residual", "multitask"])
def test_vectors_start_where_the_request_says(kind: str) -> None:
    embedding = surroundings().embedding

    def start(init: str, **more: Any) -> torch.Tensor:
        return parts(begin(kind, {"init": init} | more))["prompt"].detach()

    assert torch.allclose(start("text", init_text="x"), embedding[[20, 21] * 3])
    drawn = start("vocab")
    assert torch.allclose(start("labels"), torch.cat([embedding[[10, 12, 11]], drawn[:3]]))
    allowed = embedding[[3, 1, 4, 15, 9, 2, 6, 5]]
    assert all(any(torch.allclose(row, other) for other in allowed) for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) == P
    assert start("random").std() == pytest.approx(float(embedding.std()), rel=0.3)
    other = KnownSources.known
    assert torch.allclose(start("prompt", init_prompt="other@1"), other["other@1"])
    assert torch.allclose(start("prompt", init_prompt="short@2"), other["short@2"].repeat(3, 1))


@pytest.mark.parametrize("form", ["none", "mlp"])
def test_prefix_starts_where_the_request_says(form: str) -> None:
    def start(**more: Any) -> torch.Tensor:
        return parts(begin("prefix_tuning", {"reparametrization": form} | more))["prefix"].detach()

    assert torch.equal(start(init="text", init_text="x"), keys_of([20, 21] * 3).data)
    assert torch.equal(start(init="zero"), torch.zeros(KV.prefix(P)))
    drawn = start(init="vocab")
    allowed = [keys_of([token]).data[:, :, :, 0] for token in (3, 1, 4, 15, 9, 2, 6, 5)]
    assert all(any(torch.equal(drawn[:, :, :, j], one) for one in allowed) for j in range(P))
    assert float(start(init="random").std()) > 1


def test_decoders_vectors_start_where_the_request_says() -> None:
    decoder = surroundings().embedding.flip(0)

    def start(init: str, **more: Any) -> torch.Tensor:
        config = {"init": init, "decoder_virtual_tokens": PD} | more
        return parts(begin("prompt_tuning", config))["decoder_prompt"].detach()

    assert torch.allclose(start("text", init_text="x"), decoder[[20, 21, 20]])
    assert torch.allclose(start("labels"), decoder[[10, 12, 11]])
    allowed = decoder[[3, 1, 4, 15, 9, 2, 6, 5]]
    for drawn in (start("vocab"), start("prompt", init_prompt="other@1")):
        assert all(any(torch.allclose(row, other) for other in allowed) for row in drawn)
    theirs = KnownSources().decoder_vectors("short@2")
    assert theirs is not None
    assert torch.allclose(start("prompt", init_prompt="short@2"), theirs[[0, 1, 0]])


def test_decoders_vectors_where_there_is_no_decoders_side_are_refused() -> None:
    prompt_tuning = METHODS["prompt_tuning"]
    assert isinstance(prompt_tuning, LearnedMethod)
    config = prompt_tuning.config.model_validate({"decoder_virtual_tokens": 2})
    with pytest.raises(CapabilityMissing, match="encoder-decoder"):
        prompt_tuning.begin(config, surroundings())


def test_multitask_starts_as_the_mean_of_its_sources() -> None:
    first, second = KnownSources.known["other@1"], KnownSources.known["short@2"].repeat(3, 1)
    found = parts(begin("multitask", {"source": ["other@1", "short@2"], "num_ranks": 4}))["prompt"]
    assert torch.allclose(found, (first + second) / 2)


def test_vocab_without_rows_draws_from_the_whole_vocabulary() -> None:
    assert torch.isfinite(parts(begin("prompt_tuning", {"init": "vocab"}, frequent=[]))["prompt"]).all()


def test_labels_of_free_text_start_as_vocab() -> None:
    free = begin("prompt_tuning", {"init": "labels"}, label_tokens=[])
    assert torch.equal(parts(free)["prompt"], parts(begin("prompt_tuning", {"init": "vocab"}))["prompt"])


def test_prefix_tuning_where_no_keys_can_be_given_is_refused() -> None:
    with pytest.raises(CapabilityMissing):
        begin("prefix_tuning", {}, kv_shape=None)


def settle(**changes: Any) -> str:
    spot = METHODS["spot"]
    assert isinstance(spot, LearnedMethod)
    return spot.settle(spot.config(), surroundings(**changes)).init_prompt  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", ["other@1", "short@2"])
def test_spot_takes_the_version_nearest_to_a_short_trial(wanted: str) -> None:
    def try_out(learner: Learner) -> None:
        with torch.no_grad():
            learner.named_parameters()[0][1].copy_(KnownSources.known[wanted].mean(0) * 3)

    assert settle(try_out=try_out) == wanted


def test_spot_without_anything_near_says_so() -> None:
    class Nothing(KnownSources):
        known: dict[str, torch.Tensor] = {}  # noqa: RUF012

    with pytest.raises(NotFound) as refused:
        settle(try_out=lambda _: None, sources=Nothing())
    assert refused.value.param == "method.init_prompt"
