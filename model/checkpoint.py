"""Checkpoints: all that a training needs to go on after its driver died, in one file that is whole or absent.

Files are torch archives read with `weights_only=True`, so loading one executes nothing, behind a SHA-256 of their
content, so that a damaged one is never taken for good.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from . import storage
from .errors import WorldError

VERSION = 1
KEPT = 2
_DIGEST_BYTES = 32
_NAME = re.compile(r"^epoch-(\d{6})\.pt$")
log = logging.getLogger(__name__)


class DamagedError(WorldError):
    """A checkpoint that can never be read again; an older one may do."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `epoch` epochs: model, one optimizer state (or one per worker), outer momentum, history, best.

    `history` holds one dict of figures per epoch; `best_epoch` counts from 1 and 0 means none yet.
    """

    epoch: int
    model: dict[str, torch.Tensor]
    optimizers: list[dict[str, Any] | None]
    outer_momentum: torch.Tensor | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_model: dict[str, torch.Tensor] = field(default_factory=dict)


def save(folder_uri: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then delete all but the last two. Raises WorldError when the store refuses."""
    stream = io.BytesIO()
    torch.save({"version": VERSION} | asdict(checkpoint), stream)
    content = stream.getvalue()
    storage.write_bytes(_uri(folder_uri, checkpoint.epoch), hashlib.sha256(content).digest() + content)
    epochs = _epochs(folder_uri)
    past = [epoch for epoch in epochs if epoch <= checkpoint.epoch]
    # Later ones can only be damaged: they were passed over when this training began.
    for epoch in past[:-KEPT] + epochs[len(past) :]:
        storage.delete(_uri(folder_uri, epoch))


def delete_all(folder_uri: str) -> None:
    """Delete a run's checkpoints."""
    for epoch in _epochs(folder_uri):
        storage.delete(_uri(folder_uri, epoch))


def load_latest(folder_uri: str) -> Checkpoint | None:
    """The newest checkpoint in a folder that can be read, or None; a damaged one is logged and passed over."""
    for epoch in reversed(_epochs(folder_uri)):
        try:
            return load(_uri(folder_uri, epoch))
        except DamagedError as error:
            log.warning("%s; going on from the one before", error)
    return None


def load(uri: str) -> Checkpoint:
    """Read one checkpoint. Raises WorldError when it is damaged or of another version."""
    data = storage.read_bytes(uri)
    digest, archive = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != digest:
        raise DamagedError(f"{uri}: not a readable checkpoint (its SHA-256 is wrong: cut short or changed)")
    try:
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise DamagedError(f"{uri}: not a readable checkpoint ({type(error).__name__})") from error
    version = content.pop("version")
    if version != VERSION:
        raise WorldError(f"{uri}: checkpoint version {version}, this Shardmean reads {VERSION}; use a matching version")
    return Checkpoint(**content)


def _epochs(folder_uri: str) -> list[int]:
    return sorted(int(match[1]) for name in storage.list_names(folder_uri) if (match := _NAME.match(name)))


def _uri(folder_uri: str, epoch: int) -> str:
    return storage.join(folder_uri, f"epoch-{epoch:06d}.pt")
