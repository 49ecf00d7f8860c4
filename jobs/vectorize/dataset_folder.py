"""Which files in a DataSet's folder are ours: only those are ever deleted, and a folder of others is refused."""

from __future__ import annotations

import json
import re

from shardmean.jobs.checks.candidate import FILE as CANDIDATE
from shardmean.model.dataset.manifest import CURRENT, STAND_IN
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem

_TABLE = r"[0-9a-f]{20}\.parquet"
# The names of the files in each folder; "" is the DataSet's own.
NAMES = {
    "": "|".join(map(re.escape, (CURRENT, STAND_IN, CANDIDATE))),
    "shards": rf"(?:train|validation|test)-{_TABLE}|\.writable",
    "index": _TABLE,
    "rejected": _TABLE,
    "reports": r"[0-9a-f]{32}\.html",
    "versions": r"[0-9a-f]{32}\.json",
    # Version 0.1.0 left claims on S3, and files with two temporary names on local disks.
    "lease": r"\.?\d{8}\.(?:json|life)(?:\.[0-9a-f]{16})?|claim-\d{8}-[0-9a-f]{16}",
}
MAX_NAMED = 5


def is_ours(folder: str, name: str) -> bool:
    """Whether a file of this name in this folder is ours, or is one of ours that is being written."""
    names = NAMES[folder]
    return re.fullmatch(rf"{names}|\.(?:new|{names})\.\w+\.tmp", name) is not None


def check_folder(dataset_uri: str) -> None:
    """Raise UserError for a folder that holds no DataSet but files of others; an empty or missing one is fine.

    So is what a first run left that was cut off. Raises RetryableError when the folder can't be listed.
    """
    foreign = []
    for entry in filesystem.list_entries(dataset_uri):
        name = entry.base_name
        if entry.is_file:
            if not is_ours("", name) or (name == CURRENT and _is_of_others(filesystem.join(dataset_uri, name))):
                foreign.append(name)
        elif name not in NAMES:
            foreign.append(f"{name}/")
        else:
            below = (each.base_name for each in filesystem.list_entries(filesystem.join(dataset_uri, name)))
            foreign += [f"{name}/{each}" for each in below if not is_ours(name, each)]
    if foreign:
        more = f" and {len(foreign) - MAX_NAMED} more" if len(foreign) > MAX_NAMED else ""
        raise UserError(
            f"dataset_uri {dataset_uri}: the folder holds no DataSet but other files "
            f"({', '.join(sorted(foreign)[:MAX_NAMED])}{more}); choose an empty folder, or one that does not exist yet"
        )


def _is_of_others(uri: str) -> bool:
    """Whether a file with the manifest's name is another program's: whole JSON, and not of our schema."""
    try:
        document = json.loads(filesystem.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return False
    return not isinstance(document, dict) or "schema_version" not in document
