"""Looks at a pile of images: layout, classes, splits, sizes and channels. Reads a sample of the files' headers."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from shardmean.jobs.config.source import SourceConfig
from shardmean.jobs.vectorize.source.folders import named_split
from shardmean.jobs.vectorize.source.reader import read_item
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.errors import ImageRejectedError, RetryableError, UserError
from shardmean.model.images.pillow_limits import pillow_limits_lifted

if TYPE_CHECKING:
    from shardmean.jobs.vectorize.source.items import Item
    from shardmean.jobs.vectorize.source.scan import Scan

MAX_SAMPLE = 300
MAX_HEADER_FILE_BYTES = 64 * 2**20
GRAY_MODES = {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I", "F"}


@dataclass(frozen=True)
class Survey:
    """What a source holds. Sizes are of a sample, (S, 2) of width and height in pixels, in random order."""

    source: SourceConfig
    num_per_class: dict[str, int]
    num_per_split: dict[str, int]
    sizes_S2: np.ndarray
    is_gray: bool
    num_unreadable: int

    @property
    def num_images(self) -> int:
        """All images of the source."""
        return sum(self.num_per_class.values())


def survey(uri: str) -> Survey:
    """Look at a source. Raises UserError where no layout fits it, and RetryableError."""
    source, listed = _listed(uri)
    names = listed.items.table["class_name"].to_pylist()
    splits = Counter(name for name in listed.items.table["split"].to_pylist() if name is not None)
    random = np.random.default_rng(0)
    sample = random.permutation(len(listed.items))[:MAX_SAMPLE]
    headers = [_header(item) for item in listed.items.take(np.sort(sample))]
    seen = [header for header in headers if header is not None]
    if not seen:
        raise UserError(f"source {uri}: none of {len(headers)} sampled images can be read; correct the source")
    return Survey(
        source=source,
        num_per_class=dict(sorted(Counter(names).items())),
        num_per_split=dict(splits),
        sizes_S2=np.array([size for size, _ in seen]),
        is_gray=all(mode in GRAY_MODES for _, mode in seen),
        num_unreadable=len(headers) - len(seen),
    )


def _listed(uri: str) -> tuple[SourceConfig, Scan]:
    """The source by the layout that fits: a table by its suffix, pairs of IDX files, class folders within splits."""
    if uri.lower().endswith((".csv", ".parquet")):
        config = SourceConfig(uri=uri, layout="table")
        return config, scan(config)
    folders = SourceConfig(uri=uri)
    try:
        listed = scan(folders)
    except UserError as error:
        for other in (SourceConfig(uri=uri, layout="idx"), SourceConfig(uri=uri, split_folders=True)):
            try:
                return _with_split_files(other, scan(other))
            except UserError:
                continue
        raise error from error.__cause__
    if all(map(named_split, listed.class_names)):
        folders = SourceConfig(uri=uri, split_folders=True)
        listed = scan(folders)
    return folders, listed


def _with_split_files(config: SourceConfig, listed: Scan) -> tuple[SourceConfig, Scan]:
    if config.layout == "idx":
        named = config.model_copy(update={"split_files": True})
        try:
            return named, scan(named)
        except UserError:
            pass
    return config, listed


def _header(item: Item) -> tuple[tuple[int, int], str] | None:
    """Width and height, and Pillow's mode; None for an image that cannot be read."""
    if item.size_bytes > MAX_HEADER_FILE_BYTES:
        return None
    try:
        with pillow_limits_lifted(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(read_item(item)))
            return image.size, image.mode
    except (ImageRejectedError, RetryableError, UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None
