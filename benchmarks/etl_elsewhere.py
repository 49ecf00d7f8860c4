"""Three other ways from images to a data set on Spark, run by an interpreter that has them: imports none of ours.

PYTHON benchmarks/etl_elsewhere.py plain|streaming|petastorm FOLDER OUT: starts Spark as it is and says so; makes the
data set for each line that it gets, and answers with the seconds it took. `plain` is what most people write:
binaryFile, a UDF of Pillow, Spark's writer. The two libraries get a list of paths, so that their tasks read the files
themselves, decode with Pillow to 224 x 224 RGB, and write pixels without compression: their quickest form.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pyspark.sql import SparkSession, functions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CORES = 2
SIZE = (224, 224)


def main() -> None:
    """Serve."""
    name, folder, out = sys.argv[1:]
    files = [(str(file), int(file.parent.name)) for file in sorted(Path(folder).rglob("*.jpg"))]
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local[{CORES}]").config("spark.ui.enabled", "false")
    session = builder.config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "OFF").getOrCreate()
    make = {"plain": plain, "streaming": streaming, "petastorm": petastorm}[name](session, files, Path(out))
    say(f"ready {versions(name)}")
    for _ in sys.stdin:
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        make()
        say(f"took {time.perf_counter() - started}")


def plain(session: Any, files: list[tuple[str, int]], out: Path) -> Callable[[], object]:
    """The way most people write."""
    folder = os.path.commonpath([path for path, _ in files])

    def pillow(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize(SIZE)
        return np.asarray(image).tobytes()

    def make() -> None:
        found = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(folder)
        features = functions.udf(pillow, "binary")(found["content"])
        label = functions.element_at(functions.split(found["path"], "/"), -2).cast("long")
        frame = found.select(features.alias("features"), label.alias("label"), "path")
        frame.write.mode("overwrite").parquet(str(out))

    return make


def streaming(session: Any, files: list[tuple[str, int]], out: Path) -> Callable[[], object]:
    """mosaicml-streaming's dataframe_to_mds."""
    from streaming.base.converters import dataframe_to_mds

    def decoded(frame: Any) -> Iterator[dict[str, Any]]:
        for path, label in zip(frame["path"], frame["label"], strict=True):
            yield {"features": pixels(path).tobytes(), "label": int(label), "path": path}

    def make() -> None:
        paths = session.createDataFrame(files, "path string, label long").repartition(CORES)
        columns = {"features": "bytes", "label": "int", "path": "str"}
        settings = {"out": str(out), "columns": columns, "compression": None}
        dataframe_to_mds(paths, merge_index=True, mds_kwargs=settings, udf_iterable=decoded)

    return make


def petastorm(session: Any, files: list[tuple[str, int]], out: Path) -> Callable[[], object]:
    """Petastorm's materialize_dataset, as its documentation writes images."""
    from petastorm.codecs import NdarrayCodec, ScalarCodec
    from petastorm.etl.dataset_metadata import materialize_dataset
    from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row
    from pyspark.sql.types import LongType, StringType

    schema = Unischema(
        "Images",
        [
            UnischemaField("features", np.uint8, (*SIZE, 3), NdarrayCodec(), False),
            UnischemaField("label", np.int64, (), ScalarCodec(LongType()), False),
            UnischemaField("path", np.str_, (), ScalarCodec(StringType()), False),
        ],
    )
    uri = f"file://{out}"

    def row(file: tuple[str, int]) -> Any:
        return dict_to_spark_row(schema, {"features": pixels(file[0]), "label": file[1], "path": file[0]})

    def make() -> None:
        with materialize_dataset(session, uri, schema, 64):
            rows = session.sparkContext.parallelize(files, 2 * CORES).map(row)
            frame = session.createDataFrame(rows, schema.as_spark_schema())
            frame.write.mode("overwrite").option("compression", "uncompressed").parquet(uri)

    return make


def pixels(path: str) -> Any:
    """One file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def versions(name: str) -> str:
    """What runs here."""
    library = {"plain": [], "streaming": ["mosaicml-streaming"], "petastorm": ["petastorm"]}[name]
    packages = [*library, "pyspark", "pyarrow", "numpy", "pillow"]
    return ", ".join(f"{package} {version(package)}" for package in packages)


def say(line: str) -> None:
    """A line to whoever asks; libraries may write others."""
    print(f"elsewhere: {line}", flush=True)


if __name__ == "__main__":
    main()
