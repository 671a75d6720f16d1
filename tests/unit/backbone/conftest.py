from __future__ import annotations

import pytest

from app.backbone import Backbone, BackboneTokenizer
from tests.architectures import build_backbone


@pytest.fixture(scope="session")
def llama() -> Backbone:
    return build_backbone("llama")


@pytest.fixture(scope="session")
def tokenizer(llama: Backbone) -> BackboneTokenizer:
    return llama.tokenizer
