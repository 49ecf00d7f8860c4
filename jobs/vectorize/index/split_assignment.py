"""Who stands in which split: by what is given, by group, by hash or stratified, and copies always side by side.

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
    from shardmean.model.dataset.manifest import Split


def split_code(key: bytes, config: SplitConfig) -> int:
    """The split (its place in SPLITS) that a hash falls into: by it and the seed alone, so it stays for ever."""
    salted = hashlib.blake2b(key, digest_size=8, salt=config.seed.to_bytes(8, "big")).digest()
    place = int.from_bytes(salted, "big") / 2**64
    if place < config.train:
        return 0
    return 1 if place < config.train + config.validation else 2


def fixed_code(given: Split | None, group: str | None, config: SplitConfig) -> int:
    """The split that is given, else that of the group; -1 where there is neither."""
    if given is not None:
        return SPLITS.index(given)
    if group is None:
        return -1
    return split_code(hashlib.blake2b(group.encode(), digest_size=HASH_BYTES).digest(), config)


def fixed_codes(splits: pa.StringArray, groups: pa.StringArray, config: SplitConfig) -> NDArray[np.int8]:
    """What `fixed_code` gives for each image (N,)."""
    given = pc.index_in(splits, value_set=pa.array(SPLITS)).cast(pa.int8())
    encoded = groups.dictionary_encode()
    of_groups = [fixed_code(None, group, config) for group in encoded.dictionary.to_pylist()]
    by_group = pa.array(of_groups, pa.int8()).take(encoded.indices)
    codes_N: NDArray[np.int8] = pc.fill_null(pc.coalesce(given, by_group), -1).to_numpy()
    return codes_N


@dataclass(frozen=True)
class Candidates:
    """Images that were decoded, now or before, in the order of their paths.

    `fixed_N` is what `fixed_code` gave. `published_N` is the split of the last version, -1 for a new image.
    """

    paths: pa.LargeStringArray
    classes_N: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    fixed_N: NDArray[np.int8]
    published_N: NDArray[np.int8]


def assign_splits(images: Candidates, config: SplitConfig) -> tuple[NDArray[np.int8], dict[int, tuple[str, str]]]:
    """The split of each image (-1: rejected), and for each rejected one the reason and a detail.

    The same bytes in two classes are all rejected. Copies share a split: that of a published one, else of one whose
    split is given or of a group, else of the first by path; a copy that is given to another split is rejected.
    """
    codes_N = np.where(images.fixed_N >= 0, images.fixed_N, images.published_N)
    rejected: dict[int, tuple[str, str]] = {}
    # The one that leads the others comes first.
    groups = copies(images.hashes, images.fixed_N < 0, images.published_N < 0)
    for group in groups:
        _settle_copies(images, group, codes_N, rejected)
    is_open = codes_N < 0
    is_open[list(rejected)] = False
    # A copy follows the first of its group: only the firsts are dealt.
    followers = {follower: group[0] for group in groups for follower in group[1:] if is_open[follower]}
    is_open[list(followers)] = False
    weights_N = np.ones(len(codes_N), np.int64)
    for first in followers.values():
        weights_N[first] += 1
    codes_N[list(rejected)] = -1
    _deal(images, config, codes_N, np.flatnonzero(is_open), weights_N)
    for follower, first in followers.items():
        codes_N[follower] = codes_N[first]
    return codes_N, rejected


def _settle_copies(
    images: Candidates, group: list[int], codes_N: NDArray[np.int8], rejected: dict[int, tuple[str, str]]
) -> None:
    first = group[0]
    # By path, so that what is said of a conflict does not depend on who came when.
    by_path = sorted(group)
    other = next((p for p in by_path if images.classes_N[p] != images.classes_N[by_path[0]]), None)
    for place in group:
        if other is not None:
            rival = other if images.classes_N[place] == images.classes_N[by_path[0]] else by_path[0]
            rejected[place] = CONFLICT, f"the same bytes stand in another class too: {images.paths[rival]}"
        elif images.fixed_N[place] >= 0 and images.fixed_N[place] != codes_N[first]:
            there, here = SPLITS[codes_N[first]], SPLITS[images.fixed_N[place]]
            detail = f"the same bytes stand in {there}, and this is of {here}: {images.paths[first]}"
            rejected[place] = IN_OTHER_SPLIT, detail
        else:
            codes_N[place] = codes_N[first]


def _deal(
    images: Candidates,
    config: SplitConfig,
    codes_N: NDArray[np.int8],
    places: NDArray[np.int64],
    weights_N: NDArray[np.int64],
) -> None:
    """Give each open place a split."""
    if config.method == "random":
        for place in places.tolist():
            codes_N[place] = split_code(images.hashes[place].tobytes(), config)
        return
    shares = (config.train, config.validation, config.test)
    num_classes = int(images.classes_N.max(initial=-1)) + 1
    counts = np.zeros((num_classes, len(SPLITS)), np.int64)
    is_set = codes_N >= 0
    np.add.at(counts, (images.classes_N[is_set], codes_N[is_set]), 1)
    by_class: dict[int, list[int]] = {}
    for place in sorted(places.tolist(), key=lambda place: images.hashes[place].tobytes()):
        by_class.setdefault(int(images.classes_N[place]), []).append(place)
    for number, mine in by_class.items():
        there = counts[number]
        wanted = apportion(int(there.sum() + weights_N[mine].sum()), shares)
        for place in mine:
            codes_N[place] = lacking = int(np.argmax(wanted - there))
            there[lacking] += weights_N[place]


def apportion(total: int, shares: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers (S,) that add up to `total`, each within one of its share: the method of largest remainders."""
    exact_S = total * np.array(shares) / sum(shares)
    whole_S = np.floor(exact_S + 1e-9).astype(np.int64)
    most_lacking = np.argsort(whole_S - exact_S, kind="stable")
    whole_S[most_lacking[: total - whole_S.sum()]] += 1
    return whole_S
