"""Make the fixtures of version 0.1.0 by that version's own code: python make.py CHECKOUT OUTPUT [WORK].

CHECKOUT is a folder with the code of 0.1.0 (commit d02857b), OUTPUT a new folder for the fixtures. All is made in WORK
(/tmp/shardmean-0.1.0), because its name gets into some of the files. Needs the packages of 0.1.0 and Java 17.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from describe import MODIFIED_S, describe_dataset, describe_training
from PIL import Image

VERSION, COMMIT = "0.1.0", "d02857b"
WORK = Path("/tmp/shardmean-0.1.0")  # noqa: S108 - a neutral name, the same on every machine
RUN_KEY = "cut"
CUT_AFTER = "epoch-000001-leg-001-round-000000003.pt"
BRIGHT = {"left": np.s_[:, :4], "right": np.s_[:, 4:], "top": np.s_[:4, :]}
VECTORIZE_YAML = """\
source: {uri: images}
dataset_uri: dataset
image: {height_px: 8, width_px: 8, channels: 1}
split: {train: 0.7, validation: 0.15, test: 0.15}
shard_bytes: 1024
spark: {spark.master: "local[2]"}
"""
TRAIN_YAML = """\
dataset_uri: dataset
checkpoint_uri: run
run_key: cut
network: layers
layers:
  - {layer: conv, channels: 4, padding: 1, bias: false}
  - {layer: batch_norm}
  - {layer: relu}
  - {layer: max_pool}
  - {layer: flatten}
optimizer: {name: adam, learning_rate: 0.01, schedule: {name: cosine, final_fraction: 0.1}}
averaging: {frequency: 2, optimizer_state: average, weights: examples}
num_epochs: 3
num_workers: 2
batch_size_per_worker: 4
shuffle_buffer_bytes: 1024
checkpoint_every_rounds: 1
seed: 7
device: cpu
tracking: {experiment: fixtures, registered_model: fixture}
spark: {spark.master: "local[2]"}
"""


def main() -> None:
    """Make all, check it, and copy it to the output folder."""
    checkout, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    work = Path(sys.argv[3]) if len(sys.argv) > 3 else WORK
    for folder in (work, output):
        if folder.exists():
            sys.exit(f"{folder} is there already: remove it first")
    os.environ |= {
        "PYTHONPATH": str(checkout), "SHARDMEAN_HOME": str(work / "home"), "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    sys.path.insert(0, str(checkout))
    import model

    assert Path(model.__file__).is_relative_to(checkout), model.__file__
    work.mkdir(parents=True)
    os.chdir(work)
    Path("vectorize.yaml").write_text(VECTORIZE_YAML)
    Path("train.yaml").write_text(TRAIN_YAML)
    versions = make_dataset()
    folder = make_run()
    finish_the_run()
    expected = {
        "version": VERSION,
        "commit": COMMIT,
        "made_with": made_with(),
        "dataset": describe_dataset(versions),
        **describe_training(folder),
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    take_model()
    collect(work, output)


def made_with() -> dict[str, str]:
    """What decides the bits of a training beside Shardmean."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return {"python": sys.version.split()[0], "torch": torch.__version__, "cpu_capability": capability}


# The DataSet.


def make_dataset() -> list[str]:
    """Publish a pile, change it, and publish it again; gives the digests of the two versions."""
    rng = np.random.default_rng(1)
    for name in ("left", "right"):
        for number in range(36):
            draw(name, number, rng)
    copy_of(Path("images/left/000.png"), Path("images/left/copy.png"))
    put(Path("images/left/empty.png"), b"")
    put(Path("images/right/cut.png"), Path("images/right/000.png").read_bytes()[:60])
    put(Path("images/right/text.png"), b"This is no image.\n")
    first = vectorize()
    # Growth: a third class, more of the others, one more broken file, and one image that goes.
    for name, numbers in (("left", range(36, 40)), ("right", range(36, 40)), ("top", range(28))):
        for number in numbers:
            draw(name, number, rng)
    put(Path("images/top/empty.png"), b"")
    Path("images/right/005.png").unlink()
    return [first, vectorize()]


def draw(name: str, number: int, rng: np.random.Generator) -> None:
    """One image of a class: noise, brighter on one side."""
    pixels = rng.integers(0, 90, (8, 8), dtype=np.uint8)
    pixels[BRIGHT[name]] += 80
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    put(Path(f"images/{name}/{number:03d}.png"), stream.getvalue())


def copy_of(path: Path, other: Path) -> None:
    """A file of the same bytes."""
    put(other, path.read_bytes())


def put(path: Path, content: bytes) -> None:
    """Write a file of the pile, with the time that all have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (MODIFIED_S, MODIFIED_S))


def vectorize() -> str:
    """Run the ETL; gives the version it published."""
    command("vectorize", "--config", "vectorize.yaml")
    return str(json.loads(Path("dataset/manifest.json").read_text())["digest"])


# The training.


def make_run() -> Path:
    """Begin a training and kill it within its second epoch; gives the run's folder, with two checkpoints left in it."""
    with Path("killed.log").open("w") as log:
        process = subprocess.Popen(cli("train", "--config", "train.yaml"), stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not list(Path("run").glob(f"{RUN_KEY}-*/{CUT_AFTER}")):
            assert process.poll() is None, Path("killed.log").read_text()
            assert time.monotonic() < deadline, Path("killed.log").read_text()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(5)  # its JVM and workers end by themselves
    (folder,) = Path("run").glob(f"{RUN_KEY}-*")
    *others, newest = sorted(folder.glob("epoch-*-leg-*.pt"))
    for path in [*others, *folder.glob(".*")]:
        path.unlink()
    left = [path.name for path in folder.glob("*.pt")]
    assert set(left) == {"epoch-000001.pt", newest.name}, left
    # Who held it: this machine's names are nobody's business.
    for path in [*folder.glob("lease/*.json"), *Path("dataset/lease").glob("*.json")]:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "example", "kernel": "other pid:[1]"}))
    return folder


def finish_the_run() -> None:
    """Go on with a copy of the run to its end, by the command that began it."""
    shutil.copytree("run", "finished")
    shutil.rmtree(next(Path("finished").glob("*/lease")))
    command("train", "--config", "train.yaml", "checkpoint_uri=finished", "keep_checkpoints=1000")


# The model.


def take_model() -> None:
    """Copy the registered model out of MLflow's store, and note what it says of six images of the test split."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{Path('home/mlflow.db').resolve()}")
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("fixture", "champion")
    Path(mlflow.artifacts.download_artifacts("models:/fixture@champion", dst_path="downloaded")).rename("model")
    for cache in Path("model").rglob("__pycache__"):
        shutil.rmtree(cache)
    ids = json.loads(Path("expected.json").read_text())["dataset"]
    tests = sorted(ids["versions"][ids["current"]]["ids"]["test"])
    paths = [path for name in BRIGHT for path in [p for p in tests if p.startswith(f"{name}/")][:2]]
    assert len(paths) == 6, paths
    loaded = mlflow.pyfunc.load_model("models:/fixture@champion")
    answers = loaded.predict([{"image": Path("images", path).read_bytes()} for path in paths])
    expected = {
        "registered": {
            "name": version.name,
            "version": str(version.version),
            "aliases": sorted(client.get_registered_model("fixture").aliases),
            "tags": dict(version.tags),
        },
        "loader_module": loaded.metadata.flavors["python_function"]["loader_module"],
        "predictions": [
            {"image": f"images/{path}", **row} for path, row in zip(paths, answers.to_dict("records"), strict=True)
        ],
    }
    Path("model_expected.json").write_text(json.dumps(expected, indent=1) + "\n")


# What all share.


def cli(*arguments: str) -> list[str]:
    """A command of 0.1.0."""
    return [sys.executable, "-m", "jobs.cli", *arguments]


def command(*arguments: str) -> None:
    """Run a command of 0.1.0 to its end."""
    subprocess.run(cli(*arguments), check=True, timeout=180)


def collect(work: Path, output: Path) -> None:
    """Copy what is to stay, with the times of its files."""
    shutil.rmtree("dataset/reports")
    for name in ("images", "dataset", "run", "model"):
        shutil.copytree(work / name, output / name)
    for name in ("vectorize.yaml", "train.yaml", "expected.json", "model_expected.json"):
        shutil.copy2(work / name, output / name)
    (output / "finished").mkdir()
    for epoch in (2, 3):
        (path,) = (work / "finished").glob(f"*/epoch-{epoch:06d}.pt")
        shutil.copy2(path, output / "finished" / path.name)
    files = [path for path in output.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files)} bytes in {output}")  # noqa: T201


if __name__ == "__main__":
    main()
