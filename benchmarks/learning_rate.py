"""Which learning rate suits Deeplearning4j's recipe: test accuracy after its five epochs, for a few AdaGrad rates.

python -m benchmarks.learning_rate [--rates 0.002 0.005 0.01 0.02 0.05] [--work /tmp/shardmean-benchmarks]

Fashion-MNIST's 70,000 images, a tenth each held out for validation and test; configs/pipelines/fashion.yaml otherwise.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.fashion import DEFAULT_SOURCE
from benchmarks.measure import parsed, parser
from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_stage
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer

CONFIG = Path(__file__).parent.parent / "configs" / "pipelines" / "fashion.yaml"


def main() -> None:
    """Measure and print a line per rate."""
    options = parser(__doc__, is_timed=False)
    options.add_argument("--rates", type=float, nargs="+", default=[0.002, 0.005, 0.01, 0.02, 0.05])
    given = parsed(options)
    uri = str(given.work / "fashion-split")
    source = {"uri": str(DEFAULT_SOURCE), "layout": "idx"}
    split = {"train": 0.8, "validation": 0.1, "test": 0.1}
    vectorize(VectorizeJob.model_validate({"source": source, "split": split, "dataset_uri": uri}))
    dataset = Dataset(uri, load_manifest(uri))
    for rate in given.rates:
        job = load_stage(TrainJob, CONFIG, [f"optimizer.learning_rate={rate}", "device=cpu"])
        with LocalLauncher(job.num_workers) as launcher:
            training = Trainer(job, dataset, launcher)
            state = training.fit(None, lambda _state: None)
            metrics = training.evaluate(state.best_model, "test").metrics()
        print(f"rate {rate:<7g} test accuracy {metrics['accuracy']:.2%}, loss {metrics['loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
