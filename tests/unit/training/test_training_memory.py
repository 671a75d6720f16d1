"""Short of memory: smaller micro-batches, then layers that are computed again, and the same losses all the while."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.backbone import Backbone
from app.backbone.recomputation import recompute_layers, repeated_layers
from app.backbone.rows import Row
from app.backbone.scoring import score_rows
from app.backbone.training_form import prepare_for_training
from app.backbone.verbalizer import Verbalizer
from app.errors import CapabilityMissing
from app.training import cotraining
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer
from app.training.gradients import Lesson
from app.training.memory import Budget, kept_bytes, make_budget
from tests.architectures import build_model, own_copy
from tests.cotraining import KINDS, Hearer, cotrain, make_run


def losses(backbone: Backbone, folder: Path, budget: Budget | None = None) -> dict[int, float]:
    hearer = Hearer()
    runs = [make_run(backbone, KINDS[0], hearer, steps=8)]
    checkpoints = Checkpoints(folder, attempt=1, identity="")
    CoTrainer(backbone, runs, watcher=hearer, checkpoints=checkpoints, checkpoint_s=60, budget=budget).run()
    return hearer.losses


@pytest.mark.parametrize("prepared", [False, True])
def test_losses_with_layers_computed_again_are_the_same_to_the_bit(prepared: bool, tmp_path: Path) -> None:
    backbone = own_copy("llama")
    if prepared:
        prepare_for_training(backbone)
    plain = losses(backbone, tmp_path / "plain")
    budget = make_budget(backbone, True, tokens=2048, longest=64)
    assert losses(backbone, tmp_path / "again", budget) == plain


FAMILIES = ["llama", "gpt2", "neox", "gemma3", "t5", "t5_gated", "bart", "bert", "roberta", "modernbert"]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_with_layers_computed_again_are_the_same_to_the_bit(name: str) -> None:
    backbone = own_copy(name)
    vectors = torch.randn(5, backbone.hidden_size, generator=torch.Generator().manual_seed(1)) * backbone.embedding_rms
    mask = (backbone.tokenizer.mask_id,) if backbone.tokenizer.mask_id is not None else ()
    rows = [Row((-1, -2, 7, 8, 9, -3, *mask)), Row((-1, 30, 31, 32, 33, 34, 35, -5, *mask))]
    apart = backbone.family != "causal"
    words = Verbalizer(("a", "b"), (("a",), ("b",)), (((60, 61),), ((70,),)), terminated=False, apart=apart)
    found = []
    for on in (False, True):
        assert recompute_layers(backbone.model, on) == len(repeated_layers(backbone.model)) > 1
        leaf = vectors.clone().requires_grad_()
        scores = score_rows(backbone, rows, [leaf] * 2, [words] * 2)
        torch.cat(scores).sum().backward()
        found.append((torch.cat(scores).detach(), leaf.grad))
    (plain, wanted), (again, gradient) = found
    assert torch.equal(plain, again)
    assert wanted is not None
    assert gradient is not None
    assert torch.equal(gradient, wanted)


def saved_bytes(backbone: Backbone, length: int) -> int:
    """Bytes that autograd keeps of a forward over one row."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.model.parameters()}
    leaf = torch.zeros(2, backbone.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        score_rows(backbone, [Row((-1, -2, *range(10, length)))], [leaf], [(5, 6)])
    return sum(size for place, size in kept.items() if place not in own)


def test_layers_computed_again_keep_a_fraction() -> None:
    backbone = own_copy("llama")
    plain = saved_bytes(backbone, 400)
    assert plain <= kept_bytes(backbone, 400) * 2
    recompute_layers(backbone.model, True)
    assert saved_bytes(backbone, 400) < plain / 3


def test_switching_twice_and_back_leaves_the_model_as_it_was() -> None:
    model = build_model("llama")
    before = [layer.forward for layer in repeated_layers(model)]
    for on in (True, True, False, False):
        recompute_layers(model, on)
    assert [layer.forward for layer in repeated_layers(model)] == before


class Scarce:
    """An accelerator that holds so many tokens of one forward, and many more where layers are computed again."""

    def __init__(self, backbone: Backbone, tokens: int) -> None:
        self.backbone, self.tokens, self.tries = backbone, tokens, list[int]()
        self._real = cotraining.accumulate

    def __call__(self, backbone: Backbone, lessons: Sequence[Lesson], *, tokens: int, **options: Any) -> list[float]:
        self.tries.append(tokens)
        lessons[0].prompt.grad = torch.ones_like(lessons[0].prompt)  # type: ignore[union-attr,arg-type]
        again = type(repeated_layers(self.backbone.model)[0].forward).__name__ == "_Again"
        if tokens > self.tokens * (10 if again else 1):
            raise torch.OutOfMemoryError("planted")
        lessons[0].prompt.grad = None  # type: ignore[union-attr]
        return self._real(backbone, lessons, tokens=tokens, **options)


@pytest.fixture
def llama() -> Backbone:
    return own_copy("llama")


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_losses(
    llama: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = losses(llama, tmp_path / "plain")
    scarce = Scarce(llama, 130)
    monkeypatch.setattr(cotraining, "accumulate", scarce)
    hearer = Hearer()
    cotrain(llama, [make_run(llama, KINDS[0], hearer, steps=8)], hearer, tmp_path / "scarce")
    assert scarce.tries[:6] == [2048, 1024, 512, 256, 128, 128]
    assert [told.split()[3] for told in hearer.warnings] == ["1024", "512", "256", "128"]
    assert hearer.losses == pytest.approx(plain, abs=1e-5)


def test_row_that_does_not_fit_has_its_layers_computed_again(
    llama: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = losses(llama, tmp_path / "plain")
    monkeypatch.setattr(cotraining, "accumulate", Scarce(llama, 2))
    hearer = Hearer()
    cotrain(llama, [make_run(llama, KINDS[0], hearer, steps=8)], hearer, tmp_path / "scarce")
    assert hearer.warnings[-1] == "out of memory: layers are computed again in the backward pass from now on"
    assert hearer.losses == pytest.approx(plain, abs=1e-5)


def test_row_that_does_not_fit_where_nothing_may_be_computed_again_ends_the_run(
    llama: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cotraining, "accumulate", Scarce(llama, 2))
    with pytest.raises(torch.OutOfMemoryError):
        losses(llama, tmp_path, make_budget(llama, False, tokens=64, longest=60))


def test_auto_computes_again_from_the_start_where_little_memory_is_free(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = kept_bytes(llama, 2048)
    for free, wanted in ((needed, True), (3 * needed, None), (None, None)):
        monkeypatch.setattr("app.training.memory.free_memory", lambda free=free: free)
        assert make_budget(llama, "auto", tokens=2048, longest=60) == Budget(2048, wanted)


def test_model_that_names_no_layers_is_refused_where_asked_and_left_alone_otherwise(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.backbone.recomputation.repeated_layers", lambda model: [])
    monkeypatch.setattr("app.training.memory.free_memory", lambda: 1)
    assert make_budget(llama, "auto", tokens=9, longest=9) == Budget(9, None)
    with pytest.raises(CapabilityMissing) as refused:
        make_budget(llama, True, tokens=9, longest=9)
    assert refused.value.param == "hyperparameters.gradient_checkpointing"
