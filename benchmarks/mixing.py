"""Whether a DataSet that grew class by class trains as one that was published at once: test accuracy of both.

python -m benchmarks.mixing [--seeds 5] [--frequencies 5 epoch] [--buffer-rows 445] [--work /tmp/shardmean-benchmarks]

Fashion-MNIST's 60,000 training images as PNG files, 5/6 to train on; one DataSet is published in ten runs of the ETL,
a class more in each, the other in one. LeNet, two workers, Adam, five epochs. 445 rows are what the default buffer of
64 MiB holds of RGB images of 224 x 224 pixels.
"""

from __future__ import annotations

import statistics

from benchmarks.fashion import fashion_pngs
from benchmarks.measure import parsed, parser
from shardmean.jobs.config.job import VectorizeJob
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer

NUM_CLASSES, EXAMPLE_BYTES = 10, 28 * 28
SHARES = {"train": 5 / 6, "validation": 0, "test": 1 / 6}


def main() -> None:
    """Train on both and print accuracies by seed, and their means."""
    options = parser(__doc__, is_timed=False)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--frequencies", nargs="+", default=["5", "epoch"])
    options.add_argument("--buffer-rows", type=int, default=445)
    given = parsed(options)
    images = str(fashion_pngs(given.work, "train"))
    runs = {
        "at once": [list(range(NUM_CLASSES))],
        "class by class": [list(range(last + 1)) for last in range(1, NUM_CLASSES)],
    }
    datasets = {name: published(images, f"{given.work}/mixing-{name.replace(' ', '-')}", runs[name]) for name in runs}
    with LocalLauncher(2) as launcher:
        for frequency in given.frequencies:
            means = []
            for name, dataset in datasets.items():
                found = [accuracy(dataset, launcher, frequency, given.buffer_rows, seed) for seed in range(given.seeds)]
                means.append(statistics.mean(found))
                each = ", ".join(f"{value:.2%}" for value in found)
                print(f"averaging every {frequency}, published {name}: {means[-1]:.2%} ({each})", flush=True)
            print(f"averaging every {frequency}: {100 * (means[1] - means[0]):+.2f} points where it grew", flush=True)


def published(images: str, uri: str, runs: list[list[int]]) -> Dataset:
    """The DataSet of some classes after the other; two to begin with, since fewer are no DataSet."""
    for labels in runs:
        source = {"uri": images, "include": [f"/{label}/" for label in labels]}
        vectorize(VectorizeJob.model_validate({"source": source, "split": SHARES, "dataset_uri": uri}))
    return Dataset(uri, load_manifest(uri))


def accuracy(dataset: Dataset, launcher: LocalLauncher, frequency: str, buffer_rows: int, seed: int) -> float:
    """Accuracy on the test split after the last epoch."""
    config = TrainingConfig.model_validate(
        {
            "network": "lenet",
            "num_epochs": 5,
            "num_workers": 2,
            "seed": seed,
            "optimizer": {"name": "adam", "learning_rate": 1e-3},
            "averaging": {"frequency": frequency if frequency == "epoch" else int(frequency)},
            "shuffle_buffer_bytes": buffer_rows * EXAMPLE_BYTES,
        }
    )
    trainer = Trainer(config, dataset, launcher)
    state = trainer.fit(None, lambda _state: None)
    return float(trainer.evaluate(state.model, "test").metrics()["accuracy"])


if __name__ == "__main__":
    main()
