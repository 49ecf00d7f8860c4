"""`shardmean inspect`: what a DataSet holds, in the terminal, and whether its files are as they were published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.vectorize.index.table import read_index
from shardmean.jobs.vectorize.report.html import facts, plural
from shardmean.jobs.vectorize.report.statistics import compute_statistics, lacking
from shardmean.jobs.vectorize.report.verify import Verification
from shardmean.model.dataset.manifest import SPLITS, load_manifest, report_uri
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem
from shardmean.model.training.progress import INTERVAL_S, run_periodically

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardmean.jobs.vectorize.report.histogram import Histogram
    from shardmean.jobs.vectorize.report.statistics import DatasetStatistics
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
    console = Console(highlight=False)
    _Screen(console).show(dataset, _statistics(dataset, console))
    return _verify(console, dataset) if verify else 0


def _statistics(dataset: Dataset, console: Console) -> DatasetStatistics | None:
    if dataset.manifest.index is None:
        return None
    try:
        index = read_index(dataset.uri, dataset.manifest.index)
    except (RetryableError, OSError, ValueError) as error:
        # The manifest alone is useful, and --verify goes on to all other files.
        text = f"the index cannot be read ({truncate_printable(str(error), MAX_PATH)})"
        console.print(Text(text, "red"), soft_wrap=True)
        return None
    return compute_statistics(dataset.manifest, index)


class _Screen:
    """Prints the parts, one after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, dataset: Dataset, statistics: DatasetStatistics | None) -> None:
        manifest = dataset.manifest
        self._overview(dataset, statistics)
        self._console.print(_classes(manifest, statistics, self._console.encoding))
        for split, names in lacking(manifest).items():
            self._line(f"{split} has no example of {plural(len(names), 'class')}: {_some(names, MAX_LACKING)}")
        if statistics is None:
            self._heading(f"Rejected: {manifest.num_rejected:,}")
            for reason, number in manifest.num_rejected_by_reason.items():
                self._line(f"  {number:,} {truncate_printable(reason, MAX_NAME)}")
            return
        self._originals(statistics)
        self._rejected(statistics)
        self._conflicts(statistics)
        self._copies(statistics)

    def _line(self, text: str, style: str = "") -> None:
        # A path that is broken into lines can't be copied: the terminal wraps it, and a pipe gets it whole.
        self._console.print(Text(_encodable(text, self._console.encoding), style), soft_wrap=True)

    def _heading(self, text: str) -> None:
        self._console.print()
        self._line(text, "bold")

    def _overview(self, dataset: Dataset, statistics: DatasetStatistics | None) -> None:
        self._line(truncate_printable(dataset.uri, MAX_PATH), "bold")
        report = report_uri(dataset.uri, dataset.manifest.digest)
        rows = facts(dataset.manifest, statistics) | {"report": report if filesystem.exists(report) else "none"}
        for name, text in rows.items():
            self._line(f"  {name:13} {truncate_printable(text, MAX_PATH)}")
        self._console.print()

    def _originals(self, statistics: DatasetStatistics) -> None:
        if statistics.histograms:
            self._heading("Original images, of those accepted")
        for one in statistics.histograms:
            self._line(f"  {one.title}: {one.summary}")
            if not one.is_single:
                for line in self._bars(one):
                    self._line(line)

    def _bars(self, one: Histogram) -> Iterable[str]:
        block = "█" if self._console.encoding.startswith("utf") else "#"
        width, top = max(map(len, one.labels)), max(one.counts)
        filled = [number for number, count in enumerate(one.counts) if count]
        for number in range(filled[0], filled[-1] + 1):
            count = one.counts[number]
            bar = block * max(round(BAR * count / top), 1 if count else 0)
            yield f"    {one.labels[number]:>{width}}  {bar}{' ' if bar else ''}{count:,}"

    def _rejected(self, statistics: DatasetStatistics) -> None:
        self._heading(f"Rejected: {statistics.num_rejected:,}")
        for one in statistics.rejections:
            self._line(f"  {one.num_images:,} {truncate_printable(one.reason, MAX_NAME)}")
            for path, detail in one.first[:MAX_PATHS]:
                self._line(f"    {truncate_printable(path, MAX_PATH)}: {truncate_printable(detail, MAX_PATH)}")
            self._more(one.num_images - MAX_PATHS)

    def _conflicts(self, statistics: DatasetStatistics) -> None:
        if not statistics.conflicts:
            return
        self._heading("Conflicting labels: the same bytes in more than one class")
        for one in statistics.conflicts[:MAX_GROUPS]:
            shared = f"{plural(one.num_contents, 'image')} in {plural(one.num_images, 'file')}"
            self._line(f"  {_some(one.class_names, MAX_PATHS)}: {shared}")
        self._more(statistics.num_conflicts - MAX_GROUPS, indent="  ")

    def _copies(self, statistics: DatasetStatistics) -> None:
        self._heading(f"Exact copies: {statistics.num_copies:,}")
        for one in statistics.copies[:MAX_GROUPS]:
            self._line(f"  {one.num_images:,} x {truncate_printable(one.class_name, MAX_NAME)}, {one.split}")
            for path in one.paths[:MAX_PATHS]:
                self._line(f"    {truncate_printable(path, MAX_PATH)}")
            self._more(one.num_images - MAX_PATHS)
        self._more(statistics.num_copied - MAX_GROUPS, indent="  ", what=" groups")

    def _more(self, number: int, *, indent: str = "    ", what: str = "") -> None:
        if number > 0:
            self._line(f"{indent}... and {number:,} more{what}")


def _encodable(text: str, encoding: str) -> str:
    """`text` with what a terminal or pipe of an older encoding cannot take shown by its codes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _some(names: Iterable[str], limit: int) -> str:
    shown = [truncate_printable(name, MAX_NAME) for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit:,} more" if len(shown) > limit else "")


def _classes(manifest: Manifest, statistics: DatasetStatistics | None, encoding: str) -> Table:
    counts = [manifest.num_per_class(split) for split in SPLITS]
    if statistics is not None and statistics.num_rejected:
        counts.append([one.num_rejected for one in statistics.classes])
    names = [_encodable(truncate_printable(name, MAX_NAME), encoding) for name in manifest.class_names]
    rows = list(zip(names, *counts, strict=True))
    table = Table("class")
    for split in [*SPLITS, "rejected"][: len(counts)]:
        table.add_column(split, justify="right")
    if len(rows) <= MAX_CLASSES:
        _add(table, rows)
    else:
        rows.sort(key=lambda row: (-sum(row[1 : 1 + len(SPLITS)]), row[0]))
        _add(table, rows[:NUM_EXTREME])
        table.add_row(f"... {len(rows) - 2 * NUM_EXTREME:,} between ...")
        _add(table, rows[-NUM_EXTREME:])
    table.add_section()
    _add(table, [("all", *map(sum, counts))])
    return table


def _add(table: Table, rows: Iterable[tuple[str, *tuple[int, ...]]]) -> None:
    for name, *counts in rows:
        table.add_row(Text(name), *(f"{count:,}" for count in counts))


def _verify(console: Console, dataset: Dataset) -> int:
    verification, total = Verification(dataset), len(dataset.manifest.shards)

    def log_progress() -> None:
        end = "\r" if console.is_terminal else "\n"
        console.print(f"verified {verification.num_shards} of {total} shards", end=end)

    console.print()
    with run_periodically(INTERVAL_S, log_progress):
        verification.run()
    for damage in verification.damages:
        console.print(Text(damage, "red"), soft_wrap=True)
    if verification.damages:
        console.print(f"{plural(len(verification.damages), 'fault')}: the DataSet is not as it was published")
        return 1
    console.print(f"all {total} shards are as published")
    return 0
