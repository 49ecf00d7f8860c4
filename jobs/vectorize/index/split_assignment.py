"""The split of each image: as the source assigns it, by group, by hash or stratified; copies always share one.

Shapes: N images that may become examples, S splits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.vectorize.index.duplicates import CONFLICT, HASH_BYTES, IN_OTHER_SPLIT, copies
from shardmean.model.dataset.manifest import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shardmean.model.config.image import SplitConfig


def split_code(key: bytes, config: SplitConfig) -> int:
    """The split, an index into SPLITS, by a hash and the seed alone: it never changes."""
    salted = hashlib.blake2b(key, digest_size=8, salt=config.seed.to_bytes(8, "big")).digest()
    fraction = int.from_bytes(salted, "big") / 2**64
    return int(fraction >= config.train) + int(fraction >= config.train + config.validation)


def fixed_codes(splits: pa.StringArray, groups: pa.StringArray, config: SplitConfig) -> NDArray[np.int8]:
    """The split that the source assigns to each image (N,), else that of its group; -1 where there is neither."""
    assigned = pc.index_in(splits, value_set=pa.array(SPLITS)).cast(pa.int8())
    encoded = groups.dictionary_encode()
    hashes = (hashlib.blake2b(group.encode(), digest_size=HASH_BYTES) for group in encoded.dictionary.to_pylist())
    of_groups = pa.array([split_code(one.digest(), config) for one in hashes], pa.int8())
    by_group = of_groups.take(encoded.indices)
    codes_N: NDArray[np.int8] = pc.fill_null(pc.coalesce(assigned, by_group), -1).to_numpy()
    return codes_N


@dataclass(frozen=True)
class Candidates:
    """Images that were decoded, now or before, in the order of their paths.

    `fixed_N` is what `fixed_codes` gave. `published_N` is the split of the last version, -1 for a new image.
    """

    paths: pa.LargeStringArray
    classes_N: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    fixed_N: NDArray[np.int8]
    published_N: NDArray[np.int8]


def assign_splits(images: Candidates, config: SplitConfig) -> tuple[NDArray[np.int8], dict[int, tuple[str, str]]]:
    """The split of each image (-1: rejected), and for each rejected one the reason and a detail.

    A published image keeps its split unless the source assigns it, or a copy of it, to another. The same bytes in two
    classes are all rejected. Copies share a split: that of a published one, else of one whose split is assigned or of a
    group, else of the first by path; a copy that is assigned to another split is rejected.
    """
    codes_N = np.where(images.fixed_N >= 0, images.fixed_N, images.published_N)
    rejected: dict[int, tuple[str, str]] = {}
    # The one whose split the others take comes first.
    groups = copies(images.hashes, images.fixed_N < 0, images.published_N < 0)
    for group in groups:
        _settle_copies(images, group, codes_N, rejected)
    is_open = codes_N < 0
    is_open[list(rejected)] = False
    # A copy follows the first of its group: only the firsts are assigned.
    followers = {follower: group[0] for group in groups for follower in group[1:] if is_open[follower]}
    is_open[list(followers)] = False
    weights_N = np.ones(len(codes_N), np.int64)
    for first in followers.values():
        weights_N[first] += 1
    codes_N[list(rejected)] = -1
    _assign_open(images, config, codes_N, np.flatnonzero(is_open), weights_N)
    codes_N[list(followers)] = codes_N[list(followers.values())]
    return codes_N, rejected


def _settle_copies(
    images: Candidates, group: list[int], codes_N: NDArray[np.int8], rejected: dict[int, tuple[str, str]]
) -> None:
    first = group[0]
    # By path, so that the detail of a conflict does not depend on which came first.
    by_path = sorted(group)
    other = next((p for p in by_path if images.classes_N[p] != images.classes_N[by_path[0]]), None)
    for image in group:
        if other is not None:
            opponent = other if images.classes_N[image] == images.classes_N[by_path[0]] else by_path[0]
            rejected[image] = CONFLICT, f"the same bytes are in another class too: {images.paths[opponent]}"
        elif images.fixed_N[image] >= 0 and images.fixed_N[image] != codes_N[first]:
            there, here = SPLITS[codes_N[first]], SPLITS[images.fixed_N[image]]
            detail = f"the same bytes are in {there}, and this is of {here}: {images.paths[first]}"
            rejected[image] = IN_OTHER_SPLIT, detail
        else:
            codes_N[image] = codes_N[first]


def _assign_open(
    images: Candidates,
    config: SplitConfig,
    codes_N: NDArray[np.int8],
    chosen: NDArray[np.int64],
    weights_N: NDArray[np.int64],
) -> None:
    """Give each of the chosen images a split."""
    if config.method == "random":
        for image in chosen.tolist():
            codes_N[image] = split_code(images.hashes[image].tobytes(), config)
        return
    num_classes = int(images.classes_N.max(initial=-1)) + 1
    counts = np.zeros((num_classes, len(SPLITS)), np.int64)
    is_set = codes_N >= 0
    np.add.at(counts, (images.classes_N[is_set], codes_N[is_set]), 1)
    by_class: dict[int, list[int]] = {}
    for image in sorted(chosen.tolist(), key=lambda image: images.hashes[image].tobytes()):
        by_class.setdefault(int(images.classes_N[image]), []).append(image)
    for label, mine in by_class.items():
        counts_S = counts[label]
        total = int(counts_S.sum() + weights_N[mine].sum())
        wanted_S = apportion(total, (config.train, config.validation, config.test))
        for image in mine:
            codes_N[image] = code = int(np.argmax(wanted_S - counts_S))
            counts_S[code] += weights_N[image]


def apportion(total: int, shares: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers (S,) that add up to `total`, each within one of its share: the method of largest remainders."""
    exact_S = total * np.array(shares) / sum(shares)
    whole_S = np.floor(exact_S + 1e-9).astype(np.int64)
    most_lacking = np.argsort(whole_S - exact_S, kind="stable")
    whole_S[most_lacking[: total - whole_S.sum()]] += 1
    return whole_S
