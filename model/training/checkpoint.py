"""Checkpoints: all that a training needs to go on after its driver died, in one file that is whole or absent.

Files are torch archives read with `weights_only=True`, so loading one executes nothing, behind a SHA-256 of their
content, so that a damaged one is never taken for good.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from dataclasses import dataclass, field
from typing import Any

import torch

from ..dataset.epoch_layout import PLAN_VERSION
from ..dataset.sampler import Stage
from ..errors import DamagedError, RetryableError
from ..storage import filesystem

VERSION = 4
_DIGEST_BYTES = 32
_NAME = re.compile(r"^epoch-(\d{6})(?:-(?:stage|leg)-(\d{3})-round-(\d{9}))?\.pt$")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """All that a training has come to after `epoch` whole epochs and, of the next one, `stages`.

    `optimizers` has one state, or one per worker. `history` holds one dict of metrics per whole epoch, `running` what
    the epoch that was begun has summed up, `timeline` the workers' seconds by phase per segment. `best_epoch` counts
    from 1 and 0 means none yet. `num_steps` are the optimizer steps of the worker that took most. `model_spec` is
    `image_model.describe` of the model. `plan_version` is that by which a begun epoch goes on.
    """

    epoch: int
    model: dict[str, torch.Tensor]
    optimizers: list[dict[str, Any] | None]
    outer_momentum: torch.Tensor | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_model: dict[str, torch.Tensor] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    num_steps: int = 0
    running: dict[str, float] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    model_spec: dict[str, Any] = field(default_factory=dict)
    plan_version: int = PLAN_VERSION

    @property
    def ends_epoch(self) -> bool:
        """Whether no epoch is begun."""
        return not self.stages

    @property
    def name(self) -> str:
        """The name of its file; names sort in the order of training."""
        if self.ends_epoch:
            return f"epoch-{self.epoch:06d}.pt"
        return f"epoch-{self.epoch:06d}-stage-{len(self.stages):03d}-round-{self.stages[-1].num_rounds:09d}.pt"


def save(folder_uri: str, checkpoint: Checkpoint, *, keep_last: int = 2, keep_every_epochs: int | None = None) -> None:
    """Write a checkpoint, then delete all but the last few, that of the best epoch, and every n-th epoch's.

    Raises RetryableError when the store refuses.
    """
    stream = io.BytesIO()
    # Not dataclasses.asdict: it would copy every tensor.
    values = {**vars(checkpoint), "stages": [list(stage) for stage in checkpoint.stages]}
    torch.save({"version": VERSION, **values}, stream)
    content = stream.getvalue()
    filesystem.write_bytes(filesystem.join(folder_uri, checkpoint.name), hashlib.sha256(content).digest() + content)
    names = _names(folder_uri)
    past = [name for name in names if _sort_key(name) <= _sort_key(checkpoint.name)]
    kept = {*past[-keep_last:], f"epoch-{checkpoint.best_epoch:06d}.pt"}
    for name in names:
        epoch, *within = _sort_key(name)
        is_nth = keep_every_epochs is not None and not any(within) and epoch % keep_every_epochs == 0
        # Later ones can only be damaged: they were passed over when this training began.
        if name not in past or not (name in kept or is_nth):
            filesystem.delete(filesystem.join(folder_uri, name))


def delete_all(folder_uri: str) -> None:
    """Delete a run's checkpoints."""
    for name in _names(folder_uri):
        filesystem.delete(filesystem.join(folder_uri, name))


def load_latest(folder_uri: str) -> Checkpoint | None:
    """The newest checkpoint in a folder that can be read, or None; a damaged one is logged and passed over."""
    for name in reversed(_names(folder_uri)):
        try:
            return load(filesystem.join(folder_uri, name))
        except DamagedError as error:
            log.warning("%s; using the previous checkpoint", error)
    return None


def load(uri: str) -> Checkpoint:
    """Read one checkpoint. Raises RetryableError when it is damaged or of another version."""
    data = filesystem.read_bytes(uri)
    digest, archive = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != digest:
        raise DamagedError(f"{uri}: not a readable checkpoint (its SHA-256 is wrong: cut short or changed)")
    try:
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise DamagedError(f"{uri}: not a readable checkpoint ({type(error).__name__})") from error
    version = content.pop("version")
    if version == 3:
        content |= {"stages": content.pop("legs"), "model_spec": content.pop("about"), "plan_version": 1}
    elif version != VERSION:
        raise RetryableError(
            f"{uri}: checkpoint version {version}, this Shardmean reads {VERSION}; use a matching version"
        )
    stages = tuple(Stage(*stage) for stage in content.pop("stages"))
    return Checkpoint(**content, stages=stages)


def _names(folder_uri: str) -> list[str]:
    return sorted((name for name in filesystem.list_names(folder_uri) if _NAME.match(name)), key=_sort_key)


def _sort_key(name: str) -> tuple[int, int, int]:
    match = _NAME.match(name)
    assert match is not None, "only checkpoints' names are given"
    return int(match[1]), int(match[2] or 0), int(match[3] or 0)
