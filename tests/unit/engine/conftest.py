from __future__ import annotations

import pytest

from app.backbone import Backbone
from tests.architectures import build_backbone


@pytest.fixture(scope="session")
def llama() -> Backbone:
    return build_backbone("llama")
