"""Checkpoints: all that a training needs to go on after its driver died, in one file that is whole or absent.

Files are torch archives read with `weights_only=True`, so loading one executes nothing.
"""

from __future__ import annotations

import io
import logging
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pyarrow import fs

from . import storage
from .errors import WorldError

VERSION = 1
KEPT = 2
_NAME = re.compile(r"^epoch-(\d{6})\.pt$")
log = logging.getLogger(__name__)


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
    storage.write_bytes(_uri(folder_uri, checkpoint.epoch), stream.getvalue())
    for epoch in _epochs(folder_uri)[:-KEPT]:
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
        except WorldError as error:
            log.warning("%s; going on from the one before", error)
    return None


def load(uri: str) -> Checkpoint:
    """Read one checkpoint. Raises WorldError when it is damaged or of another version."""
    try:
        content = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
        version = content.pop("version")
        if version != VERSION:
            raise WorldError(f"{uri}: checkpoint version {version}, this Shardmean reads {VERSION}")
        return Checkpoint(**content)
    except WorldError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise WorldError(f"{uri}: not a readable checkpoint ({type(error).__name__})") from error


def _epochs(folder_uri: str) -> list[int]:
    system, path = storage.locate(folder_uri)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(int(match[1]) for info in found if (match := _NAME.match(info.base_name)))


def _uri(folder_uri: str, epoch: int) -> str:
    return storage.join(folder_uri, f"epoch-{epoch:06d}.pt")
