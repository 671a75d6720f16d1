"""LoRA (Hu et al. 2022) by PEFT: low-rank additions to every linear layer but the output's, merged for serving."""

from __future__ import annotations

from typing import Any

from torch import nn

from app.errors import CapabilityMissing

RANK, ALPHA = 8, 16


def inject(model: Any) -> dict[str, nn.Parameter]:
    """Add the low-rank factors in place; they alone learn. Raises CapabilityMissing where PEFT is not installed."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise CapabilityMissing(
            "LoRA is trained by PEFT, which is not installed: pip install 'chorus-serve[compare]'"
        ) from None
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=_targets(model))
    inject_adapter_in_model(config, model)
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def merged(model: Any) -> Any:
    """The model with the additions added to its weights, in place; as it is where there are none."""
    layers = [(name, of) for name, of in model.named_modules() if hasattr(of, "get_base_layer")]
    for name, layer in layers:
        layer.merge()
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, layer.get_base_layer())
    return model


def _targets(model: Any) -> list[str]:
    """Names of the linear layers within the blocks. GPT-2's `Conv1D` is one too."""
    kinds = ("Linear", "Conv1D")
    inner = model.base_model
    blocks = max((of for of in inner.modules() if isinstance(of, nn.ModuleList)), key=len, default=nn.ModuleList())
    mine = {id(of) for block in blocks for of in block.modules() if type(of).__name__ in kinds}
    return [name for name, of in model.named_modules() if id(of) in mine]
