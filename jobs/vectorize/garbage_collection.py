"""Deletes what no version names any more: files of killed runs, and of versions that are long out of use."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from shardmean.jobs.checks.candidate import load_candidate
from shardmean.jobs.vectorize.dataset_folder import NAMES, is_ours
from shardmean.model.dataset.manifest import manifest_uri
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

log = logging.getLogger(__name__)


def collect_garbage(
    dataset_uri: str,
    *,
    keep_versions: int,
    clean_after_hours: float,
    intermediates: Collection[str],
    before_delete: Callable[[], None],
) -> int:
    """Delete files of ours that no kept version names and that are older than `clean_after_hours`; give their number.

    `intermediates` are shards that this run wrote and then replaced: they are deleted whatever their age. Kept are the
    newest `keep_versions`, and any that was replaced less than `clean_after_hours` ago. If the store refuses a
    deletion, that is logged and the rest is left: the version that was published is good all the same.
    """
    num_deleted = 0
    try:
        oldest_ns = time.time_ns() - int(clean_after_hours * 3600e9)
        kept = _kept_names(dataset_uri, keep_versions, oldest_ns)
        if kept is None:
            return 0
        for folder in NAMES:
            uri = filesystem.join(dataset_uri, folder) if folder else dataset_uri
            for name, written_ns in sorted(filesystem.list_modified_ns(uri).items()):
                # The current manifest and the lease are not named by versions.
                is_spared = name in kept or (folder in ("", "lease") and not filesystem.is_unfinished(name))
                if is_ours(folder, name) and not is_spared and (written_ns < oldest_ns or name in intermediates):
                    before_delete()
                    filesystem.delete(filesystem.join(uri, name))
                    num_deleted += 1
    except RetryableError as error:
        log.warning("not all old files could be deleted: %s", error)
        return 0
    num_old = num_deleted - len(set(intermediates) - kept)
    if num_old > 0:
        log.info("deleted %d files that no version in use names", num_old)
    return num_deleted


def _kept_names(dataset_uri: str, keep_versions: int, oldest_ns: int) -> set[str] | None:
    """The names of all files of the versions that are kept; None when a version can't be read."""
    modified_ns = filesystem.list_modified_ns(filesystem.join(dataset_uri, "versions"))
    versions = (name for name in modified_ns if is_ours("versions", name) and not filesystem.is_unfinished(name))
    kept: set[str] = set()
    replaced_ns = time.time_ns()
    candidate = load_candidate(dataset_uri)
    uris = [manifest_uri(dataset_uri), *([manifest_uri(dataset_uri, candidate.digest)] if candidate else [])]
    for number, name in enumerate(sorted(versions, key=modified_ns.__getitem__, reverse=True)):
        if number < keep_versions or replaced_ns >= oldest_ns:
            uris.append(filesystem.join(dataset_uri, "versions", name))
            kept |= {name, f"{name.removesuffix('.json')}.html"}
        replaced_ns = modified_ns[name]
    for uri in uris:
        try:
            # Not as a Manifest: one of another schema version names files too.
            content = json.loads(filesystem.read_bytes(uri))
            digest = str(content.get("digest"))
            names = [content.get("index"), content.get("rejected"), f"{digest}.json", f"{digest}.html"]
            kept |= {str(name) for name in names} | {str(shard["name"]) for shard in content["shards"]}
        except FileNotFoundError:
            continue
        except (ValueError, AttributeError, KeyError, TypeError):
            log.warning(
                "%s can't be read, so no old file is deleted; restore it, or delete it to give up that version", uri
            )
            return None
    return kept
