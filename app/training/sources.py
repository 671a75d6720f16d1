"""Other versions' vectors as places to start from: checked at submission, read by the trainer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.backbone import Backbone, LoadedPrompt, SoftPrompt, load_prompt
from app.backbone.soft_prompt import EncoderDecoderPrompt, vectors_of
from app.errors import CapabilityMissing, InvalidPrompt
from app.training.methods.base import Sources, Versions
from prompt_store import PromptStore, StoreError
from prompt_store.errors import NotFound
from prompt_store.models import PROD, PromptMeta, Version
from prompt_store.refs import PromptRef, parse_ref

_PAGE = 100


class RegistryVersions(Versions):
    """What a submission may name. Without a backbone only the trainer can tell whether a version fits."""

    def __init__(self, store: PromptStore, backbone: Backbone | None) -> None:
        self._store = store
        self._backbone = backbone

    def pin(self, reference: str, param: str) -> str:
        version = self.find(reference, param)
        name = f"{version.task}@{version.number}"
        if not _has_vectors(version.meta):
            raise InvalidPrompt(f"{name} has no vectors to start from", param=param)
        return name

    def find(self, reference: str, param: str) -> Version:
        """The one version that is meant. Raises as `pin` does, but takes any that belongs to this backbone."""
        try:
            version = self._store.resolve(parse_ref(reference))
        except StoreError as error:
            error.param = param
            raise
        name = f"{version.task}@{version.number}"
        backbone = self._backbone
        if backbone is not None and version.meta.backbone.fingerprint != backbone.fingerprint:
            raise InvalidPrompt(
                f"{name} belongs to the backbone {version.meta.backbone.name}, this service runs {backbone.name}: "
                "vectors of one mean nothing to the other",
                param=param,
            )
        return version


class RegistrySources(Sources):
    """Vectors out of the registry. `task` is the one that learns: its own versions are not among `others`."""

    def __init__(self, store: PromptStore, backbone: Backbone, task: str) -> None:
        self._store = store
        self._backbone = backbone
        self._task = task

    def vectors(self, reference: str) -> Tensor:
        found = vectors_of(self._learned(reference))
        if found is None:
            raise InvalidPrompt(f"{reference} has no vectors to start from", param="method")
        return found.to(self._backbone.device, torch.float32)

    def decoder_vectors(self, reference: str) -> Tensor | None:
        learned = self._learned(reference)
        found = learned.decoder if isinstance(learned, EncoderDecoderPrompt) else None
        return None if found is None else found.to(self._backbone.device, torch.float32)

    def _learned(self, reference: str) -> SoftPrompt | None:
        version = self._store.resolve(parse_ref(reference))
        return load_prompt(version, self._store.load(version), self._backbone).learned

    def others(self) -> Iterator[tuple[str, Tensor]]:
        after, more = None, True
        while more:
            tasks, more = self._store.list_tasks(after=after, limit=_PAGE)
            for task in tasks:
                after = task.name
                found = None if task.name == self._task else self._of_task(task.name)
                if found is not None:
                    yield found

    def _of_task(self, task: str) -> tuple[str, Tensor] | None:
        try:
            number = self._store.get_alias(task, PROD).version
            if number is None:  # several versions: none of them speaks for the task
                return None
            version = self._store.get_version(task, number)
            if version.meta.backbone.fingerprint != self._backbone.fingerprint or not _has_vectors(version.meta):
                return None
            name = str(PromptRef(task, version=number))
            return name, self.vectors(name)
        except (NotFound, InvalidPrompt, CapabilityMissing):
            return None


def read_version(store: PromptStore, backbone: Backbone, reference: str) -> LoadedPrompt:
    """Another version as it is served. Raises NotFound and InvalidReference of the store, and InvalidPrompt."""
    version = store.resolve(parse_ref(reference))
    return load_prompt(version, store.load(version), backbone)


def _has_vectors(meta: PromptMeta) -> bool:
    return meta.num_virtual_tokens > 0 and (meta.tensors is None or "prompt" in meta.tensors)
