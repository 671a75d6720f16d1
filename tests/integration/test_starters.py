"""The shipped starter prompts: of the bundled backbone, honest about themselves, and answering as their trainer did."""

from __future__ import annotations

import pytest

from app.backbone import Backbone, BackboneConfig, LoadedPrompt, load_backbone, load_prompt
from app.engine import EngineConfig, EngineService
from app.supervisor.banner import EXAMPLES
from app.training.golden import TEXTS
from prompt_store import BlobStore, MemoryMetadata, PromptStore
from prompt_store.starters import install_starters, read_starters

# What must be right of the examples; a text must have some answer.
EXPECTED = {
    "sentiment": "positive",
    "nli": "entailment",
    "topic": "business",
    "question-type": "human",
    "duplicate": "duplicate",
    "subjectivity": "subjective",
    "kind": "water",
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BackboneConfig(device="cpu"))


@pytest.fixture(scope="module")
def prompts(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedPrompt]:
    with PromptStore(MemoryMetadata(), BlobStore(tmp_path_factory.mktemp("blobs"))) as store:
        installed = install_starters(store, backbone.fingerprint)
        versions = {task: store.get_version(task, 1) for task in installed}
        return {task: load_prompt(version, store.load(version), backbone) for task, version in versions.items()}


def test_all_shipped_starters_belong_to_the_bundled_backbone(prompts: dict[str, LoadedPrompt]) -> None:
    assert set(prompts) == {starter.task for starter in read_starters()}
    assert set(EXPECTED) <= set(prompts) <= set(EXAMPLES)


def test_every_starter_card_names_data_licence_and_a_test_score_above_what_is_to_beat() -> None:
    for starter in read_starters():
        trained, tested = starter.card[0], starter.card[-1]
        assert trained.details["metadata"]["data"]
        assert trained.details["metadata"]["licence"]
        assert tested.split == "test"
        assert tested.n >= 500
        assert tested.interval[0] < tested.score < tested.interval[1]
        (to_beat,) = (tested.baselines[name] for name in ("majority", "input") if name in tested.baselines)
        assert tested.interval[0] > to_beat


def test_no_starter_file_holds_a_row_of_its_data() -> None:
    for starter in read_starters():
        texts = [text for golden in starter.meta.golden for text in golden.input.values()]
        assert texts
        assert set(texts) <= set(TEXTS)


@pytest.mark.anyio
async def test_every_starter_holds_its_golden_outputs_and_answers_the_example(
    backbone: Backbone, prompts: dict[str, LoadedPrompt]
) -> None:
    service = EngineService(backbone, EngineConfig(threads=1))
    await service.start()
    try:
        answers = {}
        for task, prompt in prompts.items():
            assert prompt.golden
            await service.admit(prompt)
            answer = await service.answer(prompt, EXAMPLES[task], decoding=prompt.decoding, timeout_s=60)
            answers[task] = answer.text if prompt.verbalizer is None else answer.label
    finally:
        await service.stop(1)
    assert all(answers.values())
    assert {task: answers[task] for task in EXPECTED} == EXPECTED
