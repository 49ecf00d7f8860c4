"""Decoders and resizers of images side by side, on one thread: images per second, and how near to plain Pillow.

Seconds are the process's CPU time, which other programs disturb less.

python -m pip install --no-deps --target CANDIDATES opencv-python-headless PyTurboJPEG pyvips pyvips-binary imagecodecs
PYTHONPATH=CANDIDATES python -m benchmarks.decoders [--repeats 5]

What is not installed is left out and named. PyTurboJPEG needs a system's libturbojpeg of version 3.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.measure import in_turn, parsed, parser, print_table
from benchmarks.pictures import PHOTOGRAPH, photographs, saved
from shardmean.model.config.image import ImageConfig
from shardmean.model.images.decoder import decode
from shardmean.model.images.resize import Placement, paste

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Side = Callable[[Any], Any]

BILINEAR = Image.Resampling.BILINEAR
NUM_PHOTOGRAPHS = 40
LARGE, SMALL = (224, 224), (112, 84)
MIN_CPU_SECONDS = 0.25


def main() -> None:
    """Print the versions and a table for each kind of file."""
    options = parsed(parser(__doc__))
    os.environ["VIPS_CONCURRENCY"] = "1"
    torch.set_num_threads(1)
    found = candidates()
    jpegs = list(photographs(NUM_PHOTOGRAPHS))
    sizes = [len(data) for data in jpegs]
    print(f"\nJPEG photographs: {len(sizes)} of 500 x 375, {statistics.mean(sizes) / 1000:.0f} kB each on average")
    table("JPEG, all pixels, not resized", jpegs, full_sides(found), options.repeats)
    table("JPEG to 224 x 224", jpegs, resized_sides(found, LARGE), options.repeats)
    table("JPEG to 112 x 84, reduced", jpegs, reduced_sides(found, SMALL), options.repeats)
    arrays = [simplejpeg.decode_jpeg(data) for data in jpegs]
    table("Resizing alone, 500 x 375 to 224 x 224", arrays, resizers(found), options.repeats)
    table("PNG, gray, 28 x 28", digits(), png_sides(found, ImageConfig(), "L"), options.repeats)
    pngs = [saved(Image.fromarray(pixels), "PNG") for pixels in arrays[:10]]
    config = ImageConfig(height_px=PHOTOGRAPH[1], width_px=PHOTOGRAPH[0], channels=3)
    table("PNG, RGB, 500 x 375, not resized", pngs, png_sides(found, config, "RGB"), options.repeats)


def candidates() -> dict[str, Any]:
    """The modules that can be imported, by name; prints their versions and those that cannot."""
    wanted = {
        "cv2": "opencv-python-headless",
        "turbojpeg": "PyTurboJPEG",
        "pyvips": "pyvips",
        "imagecodecs": "imagecodecs",
    }
    found, missing = {}, []
    for module, package in wanted.items():
        try:
            loaded = import_module(module)
            found[module] = loaded.TurboJPEG() if module == "turbojpeg" else loaded
        except (ImportError, RuntimeError, OSError):
            missing.append(package)
    names = ["pillow", "simplejpeg", *(package for module, package in wanted.items() if module in found)]
    print(", ".join(f"{name} {version(name)}" for name in names), f"(missing: {', '.join(missing) or 'none'})")
    if "cv2" in found:
        found["cv2"].setNumThreads(1)
    return found


def digits() -> list[bytes]:
    """Gray pictures as small as MNIST's, made of a photograph's parts."""
    gray = Image.fromarray(load_sample_images().images[0]).convert("L")
    return [saved(gray.crop((x, 100, x + 28, 128)), "PNG") for x in range(0, 600, 6)]


def pillow_full(data: bytes) -> NDArray[np.uint8]:
    """The plain way, and the measure of all others."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def full_sides(found: dict[str, Any]) -> dict[str, Side]:
    """Every decoder's own way to all pixels in RGB."""
    sides: dict[str, Side] = {"Pillow": pillow_full, "simplejpeg": simplejpeg.decode_jpeg}
    if cv2 := found.get("cv2"):
        sides["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if turbo := found.get("turbojpeg"):
        sides["PyTurboJPEG"] = lambda data: turbo.decode(data, pixel_format=0)
    if pyvips := found.get("pyvips"):
        sides["pyvips"] = lambda data: pyvips.Image.new_from_buffer(data, "").numpy()
    if imagecodecs := found.get("imagecodecs"):
        sides["imagecodecs"] = imagecodecs.jpeg8_decode
    return sides


def resized_sides(found: dict[str, Any], size: tuple[int, int]) -> dict[str, Side]:
    """Decoding and antialiased resizing together."""
    sides: dict[str, Side] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(size, BILINEAR)),
        "simplejpeg, Pillow": lambda data: pillow_resized(simplejpeg.decode_jpeg(data), size),
        "model.images (simplejpeg, torch)": ours(size),
    }
    if cv2 := found.get("cv2"):
        full = full_sides(found)["OpenCV"]
        sides["OpenCV, INTER_AREA"] = lambda data: cv2.resize(full(data), size, interpolation=cv2.INTER_AREA)
        sides["OpenCV, Pillow"] = lambda data: pillow_resized(full(data), size)
    if pyvips := found.get("pyvips"):
        sides["pyvips thumbnail"] = lambda data: thumbnail(pyvips, data, size)
    return sides


def reduced_sides(found: dict[str, Any], size: tuple[int, int]) -> dict[str, Side]:
    """The same where the decoder may give half of each side at once."""
    width, height = size
    sides: dict[str, Side] = {"Pillow, all pixels": resized_sides({}, size)["Pillow"]}

    def draft(data: bytes) -> NDArray[np.uint8]:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (2 * width, 2 * height))
        return np.asarray(image.resize(size, BILINEAR))

    sides["Pillow, draft"] = draft
    sides["simplejpeg, Pillow"] = lambda data: pillow_resized(
        simplejpeg.decode_jpeg(data, min_width=2 * width, min_height=2 * height), size
    )
    sides["model.images (simplejpeg)"] = ours(size)
    if cv2 := found.get("cv2"):
        flag = cv2.IMREAD_REDUCED_COLOR_2
        sides["OpenCV, REDUCED_COLOR_2"] = lambda data: cv2.resize(
            cv2.imdecode(np.frombuffer(data, np.uint8), flag), size, interpolation=cv2.INTER_AREA
        )[..., ::-1]
    if turbo := found.get("turbojpeg"):
        sides["PyTurboJPEG 1/2, Pillow"] = lambda data: pillow_resized(
            turbo.decode(data, pixel_format=0, scaling_factor=(1, 2)), size
        )
    if pyvips := found.get("pyvips"):
        sides["pyvips thumbnail"] = lambda data: thumbnail(pyvips, data, size)
    return sides


def resizers(found: dict[str, Any]) -> dict[str, Side]:
    """Antialiased resizing of pixels that are there."""
    config = ImageConfig(height_px=LARGE[1], width_px=LARGE[0], channels=3)
    where = Placement((0, 0, *PHOTOGRAPH), *LARGE)
    sides: dict[str, Side] = {
        "Pillow": lambda pixels: pillow_resized(pixels, LARGE),
        "torch, as model.resizing": lambda pixels: paste(pixels, where, config).transpose(1, 2, 0),
    }
    if cv2 := found.get("cv2"):
        sides["OpenCV, INTER_AREA"] = lambda pixels: cv2.resize(pixels, LARGE, interpolation=cv2.INTER_AREA)
    return sides


def png_sides(found: dict[str, Any], config: ImageConfig, mode: str) -> dict[str, Side]:
    """Decoders of PNG."""
    sides: dict[str, Side] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert(mode)),
        "model.images (Pillow)": lambda data: np.squeeze(decode(data, config).transpose(1, 2, 0)),
    }
    if cv2 := found.get("cv2"):
        flag = cv2.IMREAD_GRAYSCALE if mode == "L" else cv2.IMREAD_COLOR_RGB
        sides["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if pyvips := found.get("pyvips"):
        sides["pyvips"] = lambda data: np.squeeze(pyvips.Image.new_from_buffer(data, "").numpy())
    if imagecodecs := found.get("imagecodecs"):
        sides["imagecodecs"] = imagecodecs.png_decode
    return sides


def ours(size: tuple[int, int]) -> Side:
    """The project's decoder."""
    config = ImageConfig(height_px=size[1], width_px=size[0], channels=3)
    return lambda data: decode(data, config).transpose(1, 2, 0)


def pillow_resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resized by Pillow."""
    return np.asarray(Image.fromarray(pixels).resize(size, BILINEAR))


def thumbnail(pyvips: Any, data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """pyvips's own way, which decodes reduced by itself."""
    made = pyvips.Image.thumbnail_buffer(data, size[0], height=size[1], size="force").numpy()
    return np.asarray(made)


def table(title: str, inputs: list[Any], sides: dict[str, Side], repeats: int) -> None:
    """Measure the sides in turn and print images per second and the distance from the first, the plain way."""
    wanted = [next(iter(sides.values()))(one) for one in inputs]
    metrics = in_turn({name: lambda side=side: rate(side, inputs) for name, side in sides.items()}, repeats)
    print(f"\n{title}")
    rows = [
        [
            name,
            f"{statistics.median(rates):.0f}",
            f"{min(rates):.0f} to {max(rates):.0f}",
            *distance(sides[name], inputs, wanted),
        ]
        for name, rates in metrics.items()
    ]
    print_table(["", "images/s", "least to most", "mean error", "greatest", "PSNR"], rows)


def rate(side: Side, inputs: list[Any]) -> float:
    """Images per second, over whole rounds of the inputs."""
    started, num = time.process_time(), 0
    while time.process_time() - started < MIN_CPU_SECONDS:
        for one in inputs:
            side(one)
        num += len(inputs)
    return num / (time.process_time() - started)


def distance(side: Side, inputs: list[Any], wanted: list[NDArray[np.uint8]]) -> list[str]:
    """Mean and greatest difference of 255, and PSNR."""
    pairs = zip(inputs, wanted, strict=True)
    errors = [np.abs(np.asarray(side(one)).astype(float) - pixels) for one, pixels in pairs]
    square = statistics.mean(float(np.square(error).mean()) for error in errors)
    mean = statistics.mean(float(error.mean()) for error in errors)
    signal = f"{10 * np.log10(255**2 / square):.1f} dB" if square else "same"
    return [f"{mean:.3f}", f"{max(error.max() for error in errors):.0f}", signal]


if __name__ == "__main__":
    main()
