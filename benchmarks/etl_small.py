"""Many small files: the ETL against a bare loop, listing them, and runs again with nothing or 1 % new.

python -m benchmarks.etl_small [bare] [listing] [again] [--images 60000] [--repeats 5]

Bare: Fashion-MNIST's training images as PNG files of 28 x 28; see etl_photographs for the two sides. Listing: what
the driver does before anything else, on names that the system has seen before. Again: a DataSet of all images, then a
run with nothing new, and one with 1 % more images; Spark is there already, so that no time is its start's.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.etl_bare import bare_etl
from benchmarks.etl_ours import CORES, Ours
from benchmarks.etl_sides import Rates, print_aims
from benchmarks.fashion import fashion_pngs
from benchmarks.measure import in_turn, parsed, parser, print_compared, print_table, seconds
from benchmarks.pictures import link_all, listing_folder
from benchmarks.processes import Processes
from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.config.image import ImageConfig

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

IMAGE = ImageConfig()
NUM_LISTED = (50_000, 100_000, 200_000)


def main() -> None:
    """Measure and print the tables of the parts asked for, or of all."""
    options = parser(__doc__)
    options.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)}")
    options.add_argument("--images", type=int, default=60_000, help="files of bare and again, at most 60,000")
    given = parsed(options)
    for part in given.parts or PARTS:
        PARTS[part](given)


def _bare(given: argparse.Namespace) -> None:
    images = _first_images(given, "small-pile")
    with (
        Ours(images, given.work / "small-ours", IMAGE) as ours,
        Processes(bare_etl, CORES, images, given.work / "small-bare", IMAGE) as processes,
    ):
        rates = Rates(given.images)
        sides = {"bare loop": rates.of_bare(processes), "ours": rates.of_ours(ours.afresh)}
        metrics = in_turn(sides, given.repeats)
    print(f"{given.images:,} PNG files of 28 x 28, {CORES} cores:")
    print_compared(metrics, "images/s", base="bare loop", places=0)
    rates.print_account()
    print_aims(metrics, [("ours", "bare loop", 0.6)])


def _listing(given: argparse.Namespace) -> None:
    sources = {num: SourceConfig(uri=str(listing_folder(given.work, num))) for num in NUM_LISTED}
    sides = {f"{num:,} files": lambda source=source: seconds(lambda: scan(source)) for num, source in sources.items()}
    print_compared(in_turn(sides, given.repeats), "s", base=next(iter(sides)))


def _again(given: argparse.Namespace) -> None:
    pile = _first_images(given, "growing-pile")
    for late in pile.rglob("t10k-*"):  # of a run that was cut off
        late.unlink()
    news = list(sorted(fashion_pngs(given.work, "t10k").rglob("*.png"))[:: 1_000_000 // given.images])
    rows: dict[str, list[list[float]]] = {"first run": [], "nothing new": [], "1 % new": []}
    with Ours(pile, given.work / "growing-set", IMAGE) as ours:

        def run(kind: str) -> float:
            made = ours.afresh() if kind == "first run" else ours.again()
            rows[kind].append([made.whole_s, made.tasks_s, made.cpu_s, made.num_read])
            return made.whole_s

        def grown() -> float:
            link_all(pile, news)
            whole_s = run("1 % new")
            for file in news:
                (pile / file.parent.name / file.name).unlink()
            return whole_s

        in_turn(
            {
                "first run": lambda: run("first run"),
                "nothing new": lambda: run("nothing new"),
                "1 % new": grown,
            },
            given.repeats,
        )
    _print_again(rows)


def _print_again(rows: dict[str, list[list[float]]]) -> None:
    medians = {
        kind: [statistics.median(column) for column in zip(*runs[1:], strict=True)] for kind, runs in rows.items()
    }
    first = medians["first run"]
    table = [
        [kind, f"{whole:.2f}", f"{tasks:.2f}", f"{cpu:.2f}", f"{num:,.0f}", *_shares((whole, cpu, num), first)]
        for kind, (whole, tasks, cpu, num) in medians.items()
    ]
    head = ["", "whole, s", "Spark jobs, s", "tasks' CPU, s", "images read", "x whole", "x CPU", "x images"]
    print("Runs again; the aims are 10 s for nothing new, 0.05 x for 1 % new:")
    print_table(head, table)


def _shares(values: tuple[float, float, float], first: list[float]) -> list[str]:
    return [f"{value / base:.3f}" for value, base in zip(values, (first[0], first[2], first[3]), strict=True)]


def _first_images(given: argparse.Namespace, name: str) -> Path:
    """Links to so many of Fashion-MNIST's images."""
    folder = given.work / f"{name}-{given.images}"
    if not folder.exists():
        files = sorted(fashion_pngs(given.work, "train").rglob("*.png"), key=lambda file: file.name)
        link_all(folder, files[: given.images])
    return folder


PARTS = {"bare": _bare, "listing": _listing, "again": _again}


if __name__ == "__main__":
    main()
