r"""JPEG photographs of 500 x 375 to 224 x 224 RGB shards: the ETL against a bare loop, plain Spark and other libraries.

python -m benchmarks.etl_photographs [--images 10000] [--plain-images 1000] [--streaming-python PYTHON]
    [--petastorm-python PYTHON] [--repeats 5] [--work /tmp/shardmean-benchmarks]

Ours counts inside its Spark jobs, on a session that stands; what the driver does besides is in a table of its own.
Bare loop: two processes that stand, each with its half of the same files and the same decoder, write the same columns
by plain pyarrow; it hashes nothing, splits nothing and leaves the disk to the system, where ours waits for it. The
others have fewer images and a Spark of their own, with its own defaults: see etl_elsewhere. Two of them run in the
interpreters that are given, since they are no dependencies of ours:

python -m venv STREAMING && STREAMING/bin/pip install mosaicml-streaming pyspark==4.2.0 "pandas<3" pyarrow
python -m venv PETASTORM && PETASTORM/bin/pip install petastorm pyspark==4.2.0 pyarrow==14.0.2 "numpy<2" "pandas<3" \
    pillow (petastorm needs calls that newer pyarrow does not have)
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.etl_bare import bare_etl
from benchmarks.etl_ours import CORES, Ours
from benchmarks.etl_sides import Rates, print_aims
from benchmarks.measure import in_turn, parsed, parser, print_compared
from benchmarks.pictures import photograph_folder
from benchmarks.processes import Processes
from shardmean.model.config.image import ImageConfig

if TYPE_CHECKING:
    import argparse

IMAGE = ImageConfig(height_px=224, width_px=224, channels=3)
ELSEWHERE = Path(__file__).with_name("etl_elsewhere.py")
PLAIN = "plain Spark"
OTHERS = {"streaming": "mosaicml-streaming", "petastorm": "petastorm"}


def main() -> None:
    """Measure and print the tables."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=10_000, help="photographs for ours and the bare loop")
    options.add_argument("--plain-images", type=int, default=1_000, help="photographs for the slower sides")
    for name, package in OTHERS.items():
        options.add_argument(f"--{name}-python", help=f"an interpreter that has {package}; default: leave it out")
    given = parsed(options)
    images, few = (photograph_folder(given.work, num) for num in (given.images, given.plain_images))
    size = sum(file.stat().st_size for file in few.rglob("*.jpg")) / given.plain_images
    print(f"{given.images:,} JPEG photographs, {size / 1000:.0f} kB each; {given.plain_images:,} for the slower sides")
    rates = Rates(given.images)
    with (
        Ours(images, given.work / "photographs-ours", IMAGE) as ours,
        Processes(bare_etl, CORES, images, given.work / "photographs-bare", IMAGE) as processes,
        ExitStack() as ends,
    ):
        sides = {
            "bare loop": rates.of_bare(processes),
            "ours": rates.of_ours(ours.afresh),
        }
        for name, elsewhere in others(given, few, ends).items():
            sides[name] = lambda elsewhere=elsewhere: given.plain_images / elsewhere.seconds()
        metrics = in_turn(sides, given.repeats)
    print_compared(metrics, "images/s", base="bare loop", places=0)
    rates.print_account()
    aims = [("ours", "bare loop", 0.85), ("ours", PLAIN, 8), *(("ours", name, 2) for name in OTHERS.values())]
    print_aims(metrics, aims)


def others(given: argparse.Namespace, images: Path, ends: ExitStack) -> dict[str, Elsewhere]:
    """The sides that start; says why others do not."""
    pythons = {"plain": sys.executable, **{name: getattr(given, f"{name}_python") for name in OTHERS}}
    found = {}
    for name, python in pythons.items():
        title = OTHERS.get(name, PLAIN)
        if python is None:
            print(f"{title}: left out; --{name}-python gives an interpreter that has it")
            continue
        try:
            elsewhere = Elsewhere(python, name, images, given.work / f"photographs-{name}")
            elsewhere.seconds()
        except RuntimeError as error:
            print(f"{title}: does not run: {error}")
            continue
        found[title] = ends.enter_context(elsewhere)
    return found


class Elsewhere:
    """A program of another interpreter that makes a data set whenever it is asked."""

    def __init__(self, python: str, name: str, images: Path, out: Path) -> None:
        """Start it. Raises RuntimeError with its last words when it can't."""
        self._log = (out.parent / f"{name}.log").open("w+")
        command = [python, str(ELSEWHERE), name, str(images), str(out)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        print(self._answer("ready"))

    def seconds(self) -> float:
        """How long it says it took."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._last_words()) from None
        return float(self._answer("took"))

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        start = f"elsewhere: {word} "
        for line in self._process.stdout:
            if line.startswith(start):
                return line.removeprefix(start).strip()
        raise RuntimeError(self._last_words())

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self._process.returncode}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.communicate()


if __name__ == "__main__":
    main()
