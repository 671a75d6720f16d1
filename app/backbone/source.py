"""Where a backbone's files come from: the bundled model, a local folder, or a hub id at a pinned revision.

Only safetensors weights are accepted and no code of a model is ever run: a folder that brings Python files or an
`auto_map` is refused, not merely read without them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from app.errors import UnsupportedBackbone

BUNDLED = "bundled"
BUNDLED_NAME = "chorus-10m"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt"]


def bundled_folder() -> Path:
    return Path(__file__).parent / "bundled" / BUNDLED_NAME


def locate(source: str, revision: str | None, *, cache: Path | None = None) -> tuple[str, Path]:
    """(name for people, folder with config.json and *.safetensors). Raises UnsupportedBackbone with the fix."""
    if source == BUNDLED:
        return BUNDLED_NAME, bundled_folder()
    folder = Path(source).expanduser()
    if folder.is_dir():
        name = folder.resolve().name
    elif _HUB_ID.fullmatch(source):
        name, folder = source, _fetch(source, revision, cache)
    else:
        raise UnsupportedBackbone(f"`{source}` is neither a folder nor a hub id like `org/name`", param="model")
    check_folder(folder)
    return name, folder


def check_folder(folder: Path) -> None:
    """Refuse what is incomplete or could run code."""
    if not (folder / "config.json").is_file():
        raise UnsupportedBackbone(f"{folder} has no config.json", param="model")
    if not list(folder.glob("*.safetensors")):
        other = [file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in folder.glob(pattern)]
        found = f" (found {other[0]}; convert it with transformers' save_pretrained)" if other else ""
        raise UnsupportedBackbone(f"{folder} holds no .safetensors weights{found}", param="model")
    if "auto_map" in json.loads((folder / "config.json").read_text()):
        raise UnsupportedBackbone(
            "this model wants to run code of its own (`auto_map`); that is never done", param="model"
        )
    code = next(iter(folder.glob("*.py")), None)
    if code is not None:
        raise UnsupportedBackbone(
            f"the model folder holds Python code ({code.name}); remove it to load the weights", param="model"
        )


def _fetch(hub_id: str, revision: str | None, cache: Path | None) -> Path:
    """Download (or find in the hub's cache) one revision. The first revision seen is remembered, so that a later start
    serves the same weights although the hub's main branch has moved."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    pins = cache / "revisions.json" if cache else None
    pinned: dict[str, str] = json.loads(pins.read_text()) if pins and pins.is_file() else {}
    try:
        folder = Path(snapshot_download(hub_id, revision=revision or pinned.get(hub_id), allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedBackbone(f"cannot fetch `{hub_id}` from the hub: {reason}", param="model") from error
    if pins and revision is None and hub_id not in pinned:
        pins.parent.mkdir(parents=True, exist_ok=True)
        pins.write_text(json.dumps({**pinned, hub_id: folder.name}, indent=1))
    return folder
