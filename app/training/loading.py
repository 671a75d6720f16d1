"""The backbone as a trainer's processes hold it, from the settings."""

from __future__ import annotations

from app.backbone import Backbone, BackboneConfig, load_backbone
from app.backbone.training_form import prepare_for_training
from app.errors import UnsupportedBackbone
from app.settings import Settings


def load_for_training(settings: Settings) -> Backbone:
    """Raises UnsupportedBackbone."""
    if settings.device_map != "none" and settings.train_processes > 1:
        raise UnsupportedBackbone(
            "a model that lies over all GPUs leaves none for other processes: CHORUS_TRAIN_PROCESSES=1",
            param="train_processes",
        )
    backbone = load_backbone(
        BackboneConfig(
            source=settings.model,
            revision=settings.model_revision,
            dtype=settings.dtype,
            device=settings.device,
            device_map=settings.device_map,
            cache=settings.data_dir / "backbones",
        )
    )
    return prepare_for_training(backbone)
