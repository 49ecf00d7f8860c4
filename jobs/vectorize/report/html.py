"""The report of a DataSet: one HTML page that needs no network and no script, the same bytes for the same DataSet."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.vectorize.report.histogram import format_bytes, format_number
from shardmean.jobs.vectorize.report.statistics import DatasetStatistics, lacking
from shardmean.model.dataset.manifest import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

    from shardmean.jobs.vectorize.report.statistics import ClassCount
    from shardmean.model.dataset.manifest import Manifest
    from shardmean.model.dataset.reader import Dataset

MAX_NAME, MAX_PATH, MAX_DETAIL = 60, 110, 160
MAX_CLASSES, NUM_EXTREME = 100, 50
MAX_LACKING = 50


def make_report(dataset: Dataset, index: pa.Table) -> bytes:
    """The page of a DataSet, published or about to be; `index` is its index table. Raises RetryableError."""
    # `shardmean inspect`, which takes its facts from here, needs neither Pillow (in `thumbnails`) nor Jinja.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from shardmean.jobs.vectorize.report.thumbnails import draw

    environment = Environment(
        loader=PackageLoader("shardmean.jobs.vectorize", "report"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": format_number,
        "bytes": format_bytes,
        "plural": plural,
        "name": partial(truncate_printable, limit=MAX_NAME),
        "path": partial(truncate_printable, limit=MAX_PATH),
        "detail": partial(truncate_printable, limit=MAX_DETAIL),
        "percent": lambda part, whole: f"{100 * part / whole if whole else 0:.3g}",
    }
    statistics = DatasetStatistics(dataset.manifest, index)
    page = environment.get_template("report.html").render(
        name=_last_name(dataset.uri),
        uri=dataset.uri,
        manifest=dataset.manifest,
        statistics=statistics,
        pictures=draw(dataset),
        splits=[split for split in SPLITS if statistics.num_examples(split)],
        groups=_class_groups(statistics),
        facts=facts(dataset.manifest, statistics),
        lacking=lacking(dataset.manifest),
        max_lacking=MAX_LACKING,
    )
    return page.encode()


def facts(manifest: Manifest, statistics: DatasetStatistics | None) -> dict[str, str]:
    """What a DataSet is made of and how, for the page and the terminal."""
    channels, height, width = manifest.image.shape
    source = manifest.source
    facts = {
        "version": manifest.digest,
        "source": f"{source.uri} ({source.layout}, {plural(source.num_files, 'image')})",
        "examples": f"{channels} x {height} x {width} (channels, height, width), uint8, resize {manifest.image.resize}",
        "shards": f"{len(manifest.shards):,}, {format_bytes(sum(shard.num_bytes for shard in manifest.shards))}",
        "mean": ", ".join(f"{value:.4f}" for value in manifest.mean),
        "std": ", ".join(f"{value:.4f}" for value in manifest.std),
    }
    hidden = "hidden files" if source.layout == "table" else "hidden files and folders"
    left_out = ((source.num_hidden, hidden), (source.num_left_out, "images by max_per_class"))
    if any(number for number, _ in left_out):
        facts["left out"] = ", ".join(f"{number:,} {what}" for number, what in left_out if number)
    if statistics is not None and statistics.newest_ns:
        facts["newest image"] = f"{datetime.fromtimestamp(statistics.newest_ns // 10**9, UTC):%Y-%m-%d %H:%M} UTC"
    return facts


def _last_name(uri: str) -> str:
    # In a URI options follow a `?`, which in a local path is a letter like any other.
    path = unquote(urlsplit(uri).path) if "://" in uri else uri
    return path.rstrip("/").rpartition("/")[2] or uri


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 class, 2,000 classes."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def _class_groups(statistics: DatasetStatistics) -> list[tuple[str, list[ClassCount]]]:
    """The classes to list, in one group or, where they are many, the largest and the smallest."""
    if len(statistics.classes) <= MAX_CLASSES:
        return [("", statistics.classes)]
    order = sorted(statistics.classes, key=lambda one: (-one.num_examples, one.name))
    return [
        (f"The {NUM_EXTREME} largest", order[:NUM_EXTREME]),
        (f"The {NUM_EXTREME} smallest", order[-NUM_EXTREME:]),
    ]
