"""Image files for the benchmarks of the ETL, all different, each folder made once: photographs, noise, and names alone.

The ETL takes files of the same bytes for one example, so no two are alike.
"""

from __future__ import annotations

import io
import os
import shutil
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

NUM_CLASSES = 10
PHOTOGRAPH = (500, 375)
QUALITIES = (75, 85, 90, 95)
MAX_LINKS = 50_000  # of one file, below what file systems allow


def photograph_folder(work: Path, num: int) -> Path:
    """JPEG photographs in a folder per class."""
    return made_once(work / f"photographs-{num}", lambda folder: write_all(folder, photographs(num), ".jpg"))


def noise_folder(work: Path, num: int) -> Path:
    """PNG files of 28 x 28 gray noise in a folder per class."""
    return made_once(work / f"noise-{num}", lambda folder: write_all(folder, islice(noise(), num), ".png"))


def listing_folder(work: Path, num: int) -> Path:
    """As many names, of links to a few files, in a folder per class: enough to list."""
    return made_once(work / f"listing-{num}", lambda folder: _link_names(folder, num))


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, made anew unless it is whole."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def photographs(num: int) -> Iterator[bytes]:
    """Parts of 500 x 375 of scikit-learn's two photographs, in four qualities."""
    pictures = load_sample_images().images
    width, height = PHOTOGRAPH
    rooms = (len(pictures), pictures[0].shape[0] - height + 1, pictures[0].shape[1] - width + 1, len(QUALITIES))
    for choice in np.random.default_rng(0).permutation(np.prod(rooms))[:num]:
        picture, top, left, quality = (int(place) for place in np.unravel_index(choice, rooms))
        part = pictures[picture][top : top + height, left : left + width]
        yield saved(Image.fromarray(part), "JPEG", quality=QUALITIES[quality])


def noise() -> Iterator[bytes]:
    """PNG files of 28 x 28 gray noise, without end."""
    draw = np.random.default_rng(0)
    while True:
        yield saved(Image.fromarray(draw.integers(0, 256, (28, 28), np.uint8)), "PNG", compress_level=1)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_all(folder: Path, files: Iterable[bytes], suffix: str) -> None:
    """Files dealt to the folders of ten classes."""
    _make_classes(folder)
    for number, data in enumerate(files):
        _path(folder, number, suffix).write_bytes(data)


def link_all(folder: Path, files: Iterable[Path]) -> None:
    """Links to files, in folders of the same names as theirs."""
    _make_classes(folder)
    for file in files:
        os.link(file, folder / file.parent.name / file.name)


def _link_names(folder: Path, num: int) -> None:
    _make_classes(folder)
    first = folder
    for number in range(num):
        path = _path(folder, number, ".png")
        if number % MAX_LINKS == 0:
            first = path
            path.write_bytes(b"not read")
        else:
            os.link(first, path)


def _make_classes(folder: Path) -> None:
    for label in range(NUM_CLASSES):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)


def _path(folder: Path, number: int, suffix: str) -> Path:
    return folder / str(number % NUM_CLASSES) / f"{number:06d}{suffix}"
