"""`shardmean inspect`: what a DataSet holds, in the terminal, and whether its files are as they were published."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.vectorize.index.table import read_index
from shardmean.jobs.vectorize.report.html import facts, plural
from shardmean.jobs.vectorize.report.statistics import DatasetStatistics, lacking
from shardmean.jobs.vectorize.report.verify import Verification
from shardmean.model.dataset.manifest import SPLITS, load_manifest, report_uri
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardmean.jobs.vectorize.report.histogram import Histogram
    from shardmean.model.dataset.manifest import Manifest

MAX_CLASSES, NUM_EXTREME = 50, 20
MAX_LACKING, MAX_PATHS, MAX_GROUPS = 10, 5, 5
MAX_NAME, MAX_PATH = 40, 200
BAR = 40


def show_dataset(uri: str, *, verify: bool, digest: str | None = None) -> int:
    """Print what a DataSet (or one version of it) holds; with `verify`, read all of it. Returns the exit code."""
    return show(Dataset(uri, load_manifest(uri, digest)), verify=verify)


def show(dataset: Dataset, *, verify: bool) -> int:
    """Print what an open DataSet holds, and with `verify` whether it is whole. Returns the exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # What a terminal or pipe of an older encoding cannot take is shown by its codes.
        sys.stdout.reconfigure(errors="backslashreplace")
    # A path that is broken into lines can't be copied: the terminal wraps it, and a pipe gets it whole.
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    manifest, statistics = dataset.manifest, _statistics(dataset, console)
    _show_overview(console, dataset, statistics)
    console.print(_classes(manifest, statistics), soft_wrap=False)
    for split, names in lacking(manifest).items():
        console.print(f"{split} has no example of {plural(len(names), 'class')}: {_some(names, MAX_LACKING)}")
    if statistics is None:
        console.print(f"\nRejected: {manifest.num_rejected:,}", style="bold")
        for reason, number in manifest.num_rejected_by_reason.items():
            console.print(f"  {number:,} {truncate_printable(reason, MAX_NAME)}")
    else:
        _show_originals(console, statistics.histograms)
        _show_rejected(console, statistics)
        _show_conflicts(console, statistics)
        _show_copies(console, statistics)
    return _verify(console, dataset) if verify else 0


def _statistics(dataset: Dataset, console: Console) -> DatasetStatistics | None:
    if dataset.manifest.index is None:
        return None
    try:
        index = read_index(dataset.uri, dataset.manifest.index)
    except (RetryableError, OSError, ValueError) as error:
        # The manifest alone is useful, and --verify goes on to all other files.
        console.print(f"the index cannot be read ({truncate_printable(str(error), MAX_PATH)})", style="red")
        return None
    return DatasetStatistics(dataset.manifest, index)


def _show_overview(console: Console, dataset: Dataset, statistics: DatasetStatistics | None) -> None:
    console.print(truncate_printable(dataset.uri, MAX_PATH), style="bold")
    report = report_uri(dataset.uri, dataset.manifest.digest)
    rows = facts(dataset.manifest, statistics) | {"report": report if filesystem.exists(report) else "none"}
    for name, text in rows.items():
        console.print(f"  {name:13} {truncate_printable(text, MAX_PATH)}")
    console.print()


def _classes(manifest: Manifest, statistics: DatasetStatistics | None) -> Table:
    counts = [manifest.num_per_class(split) for split in SPLITS]
    if statistics is not None and statistics.num_rejected:
        counts.append([one.num_rejected for one in statistics.classes])
    table = Table("class")
    for column in [*SPLITS, "rejected"][: len(counts)]:
        table.add_column(column, justify="right")
    rows = list(zip(manifest.class_names, zip(*counts, strict=True), strict=True))
    if len(rows) > MAX_CLASSES:
        rows.sort(key=lambda row: (-sum(row[1][: len(SPLITS)]), row[0]))
        rows[NUM_EXTREME:-NUM_EXTREME] = [(f"... {len(rows) - 2 * NUM_EXTREME:,} between ...", ())]
    for name, numbers in rows:
        table.add_row(truncate_printable(name, MAX_NAME), *(f"{number:,}" for number in numbers))
    table.add_section()
    table.add_row("all", *(f"{sum(numbers):,}" for numbers in counts))
    return table


def _show_originals(console: Console, histograms: list[Histogram]) -> None:
    if histograms:
        console.print("\nOriginal images, of those accepted", style="bold")
    block = "█" if console.encoding.startswith("utf") else "#"
    for one in histograms:
        console.print(f"  {one.title}: {one.summary}")
        if one.is_single:
            continue
        width, top = max(map(len, one.labels)), max(one.counts)
        filled = [number for number, count in enumerate(one.counts) if count]
        for number in range(filled[0], filled[-1] + 1):
            count = one.counts[number]
            bar = block * max(round(BAR * count / top), 1) + " " if count else ""
            console.print(f"    {one.labels[number]:>{width}}  {bar}{count:,}")


def _show_rejected(console: Console, statistics: DatasetStatistics) -> None:
    console.print(f"\nRejected: {statistics.num_rejected:,}", style="bold")
    for one in statistics.rejections:
        console.print(f"  {one.num_images:,} {truncate_printable(one.reason, MAX_NAME)}")
        for path, detail in one.first[:MAX_PATHS]:
            console.print(f"    {truncate_printable(path, MAX_PATH)}: {truncate_printable(detail, MAX_PATH)}")
        _show_more(console, one.num_images - MAX_PATHS)


def _show_conflicts(console: Console, statistics: DatasetStatistics) -> None:
    if not statistics.conflicts:
        return
    console.print("\nConflicting labels: the same bytes in more than one class", style="bold")
    for one in statistics.conflicts[:MAX_GROUPS]:
        shared = f"{plural(one.num_contents, 'image')} in {plural(one.num_images, 'file')}"
        console.print(f"  {_some(one.class_names, MAX_PATHS)}: {shared}")
    _show_more(console, statistics.num_conflicts - MAX_GROUPS, " groups")


def _show_copies(console: Console, statistics: DatasetStatistics) -> None:
    console.print(f"\nExact copies: {statistics.num_copies:,}", style="bold")
    for one in statistics.copies[:MAX_GROUPS]:
        console.print(f"  {one.num_images:,} x {truncate_printable(one.class_names[0], MAX_NAME)}, {one.split}")
        for path in one.paths[:MAX_PATHS]:
            console.print(f"    {truncate_printable(path, MAX_PATH)}")
        _show_more(console, one.num_images - MAX_PATHS)
    _show_more(console, statistics.num_copied - MAX_GROUPS, " groups")


def _show_more(console: Console, number: int, what: str = "") -> None:
    if number > 0:
        console.print(f"    ... and {number:,} more{what}")


def _some(names: Sequence[str], limit: int) -> str:
    shown = ", ".join(truncate_printable(name, MAX_NAME) for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def _verify(console: Console, dataset: Dataset) -> int:
    verification, shards = Verification(dataset), dataset.manifest.shards
    console.print()
    for shard in track(shards, "verifying", console=console, transient=True):
        verification.add_shard(shard)
    damages = verification.all_damages()
    for damage in damages:
        console.print(damage, style="red")
    if damages:
        console.print(f"{plural(len(damages), 'fault')}: the DataSet is not as it was published")
        return 1
    console.print(f"all {len(shards)} shards are as published")
    return 0
