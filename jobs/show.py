"""`shardmean inspect`: what a DataSet holds, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.manifest import SPLITS, Manifest, load_manifest
from model.shards import Dataset


def show_dataset(uri: str, *, verify: bool) -> int:
    """Print a DataSet's manifest as tables; with `verify`, read every shard. Returns the exit code."""
    manifest = load_manifest(uri)
    console = Console()
    console.print(_overview(uri, manifest))
    console.print(_classes(manifest))
    if verify:
        dataset = Dataset(uri, manifest)
        for number, shard in enumerate(manifest.shards, start=1):
            dataset.read(shard, 0, 0)
            if console.is_terminal:
                console.print(f"verified {number} of {len(manifest.shards)} shards", end="\r")
        console.print(f"all {len(manifest.shards)} shards are as published")
    return 0


def _overview(uri: str, manifest: Manifest) -> Table:
    channels, height, width = manifest.image.shape
    table = Table(title=escape(uri), show_header=False, title_justify="left")
    rows = {
        "version": manifest.digest,
        "images": f"{channels} x {height} x {width} (channels, height, width), uint8, resize {manifest.image.resize}",
        "source": f"{manifest.source.uri} ({manifest.source.layout}, {manifest.source.num_files} files)",
        "shards": f"{len(manifest.shards)}, {sum(s.num_bytes for s in manifest.shards) / 2**20:.1f} MiB",
        "mean": ", ".join(f"{value:.4f}" for value in manifest.mean),
        "std": ", ".join(f"{value:.4f}" for value in manifest.std),
        "rejected": f"{manifest.num_rejected} {manifest.num_rejected_by_reason or ''}",
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def _classes(manifest: Manifest) -> Table:
    table = Table("class", *SPLITS, title_justify="left")
    counts = [manifest.num_per_class(split) for split in SPLITS]
    for name, *row in list(zip(manifest.class_names, *counts, strict=True))[:50]:
        table.add_row(escape(name), *map(str, row))
    if len(manifest.class_names) > 50:
        table.add_row(f"... {len(manifest.class_names) - 50} more", *[""] * len(SPLITS))
    table.add_section()
    table.add_row("all", *(str(sum(column)) for column in counts))
    return table
