"""How good the averaged network is: test accuracy by averaging frequency and number of workers, 3 seeds each.

python -m benchmarks.quality [--seeds 3] [--epochs 5] [--results docs/quality.jsonl] [--picture docs/quality.png]
    [--only-print]

LeNet with AdaGrad, batch 32 a worker, on Fashion-MNIST: 55,000 images to train on, 5,000 to choose learning rates
with, the official 10,000 to test on. Each setting has its own learning rate: from 0.02 halved or doubled for as long
as that raises the validation accuracy of seed 0. The test accuracy is that of the state after the last epoch. No
timing, so it may run beside other work. Each training is a line of the results; what is there is not run again.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fashion import official_dataset
from benchmarks.measure import commit, parsed, parser, print_table
from shardmean.model.config.training import TrainingConfig
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardmean.model.dataset.reader import Dataset

OUTER = {"learning_rate": 1.0, "momentum": 0.5, "nesterov": True}
FIRST_RATE = 0.02
WORKERS = (2, 4)


@dataclass(frozen=True)
class Setting:
    """What is compared: `frequency` as in the config, or `20 outer` for frequency 20 with the outer optimizer."""

    num_workers: int
    frequency: str

    @property
    def averaging(self) -> dict[str, Any]:
        """The config's section of this setting."""
        number, _, outer = self.frequency.partition(" ")
        return {"frequency": number if number == "epoch" else int(number), **({"outer": OUTER} if outer else {})}


@dataclass(frozen=True)
class Result:
    """What one training reached; accuracies are shares."""

    num_workers: int
    frequency: str
    rate: float
    seed: int
    epochs: int
    validation: float
    test: float
    commit: str


PLAIN = Setting(1, "epoch")
FREQUENCIES = ("1", "5", "20", "100", "epoch", "20 outer")
# The comparison that has a target comes first.
SETTINGS = [PLAIN, Setting(2, "5")] + [
    Setting(n, f) for n in WORKERS for f in FREQUENCIES if (n, f) != (2, "5")
]  # fmt: skip


def main() -> None:
    """Train what is missing and print the table; draw the plot."""
    options = parser(__doc__, is_timed=False)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--picture", type=Path, help="where to draw the plot (PNG)")
    options.add_argument("--results", type=Path, help="the file of results; default: quality.jsonl in WORK")
    options.add_argument("--only-print", action="store_true", help="train nothing: show what was trained already")
    given = parsed(options)
    runs = Runs(given.results or given.work / "quality.jsonl", official_dataset(given.work), given.epochs)
    chosen = {setting: runs.known_best(setting) for setting in SETTINGS}
    if not given.only_print:
        for setting in SETTINGS:
            chosen[setting] = rate = runs.best_rate(setting)
            for seed in range(1, given.seeds):
                runs.result(setting, rate, seed)
    results = {s: runs.known(s, rate) for s, rate in chosen.items() if rate is not None}
    _print(results)
    if given.picture:
        _draw(results, given.picture)


class Runs:
    """Trainings by setting, rate and seed: done when asked for and not found in the file."""

    def __init__(self, file: Path, dataset: Dataset, epochs: int) -> None:
        self._file = file
        self._dataset = dataset
        self._epochs = epochs
        lines = file.read_text().splitlines() if file.exists() else []
        found = [Result(**json.loads(line)) for line in lines]
        self._results = [result for result in found if result.epochs == epochs]

    def best_rate(self, setting: Setting) -> float:
        """The learning rate with the best validation accuracy of seed 0, by halving and doubling."""
        rate, best = FIRST_RATE, self._validation(setting, FIRST_RATE)
        for factor in (0.5, 2.0):
            while (accuracy := self._validation(setting, rate * factor)) > best:
                rate, best = rate * factor, accuracy
            if rate != FIRST_RATE:
                break
        return rate

    def known_best(self, setting: Setting) -> float | None:
        """The best rate among what was trained already."""
        found = [result for result in self._of(setting) if result.seed == 0]
        return max(found, key=lambda result: result.validation).rate if found else None

    def known(self, setting: Setting, rate: float) -> list[Result]:
        """What was trained already at one rate, by seed."""
        return [result for result in self._of(setting) if result.rate == rate]

    def result(self, setting: Setting, rate: float, seed: int) -> Result:
        """What one training reached, after training if need be."""
        for result in self.known(setting, rate):
            if result.seed == seed:
                return result
        result = self._train(setting, rate, seed)
        self._results.append(result)
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(json.dumps(asdict(result)), flush=True)
        return result

    def _validation(self, setting: Setting, rate: float) -> float:
        return self.result(setting, rate, seed=0).validation

    def _of(self, setting: Setting) -> list[Result]:
        return [r for r in self._results if Setting(r.num_workers, r.frequency) == setting]

    def _train(self, setting: Setting, rate: float, seed: int) -> Result:
        config = TrainingConfig.model_validate(
            {
                "optimizer": {"name": "adagrad", "learning_rate": rate, "weight_decay": 5e-4},
                "averaging": setting.averaging,
                "num_epochs": self._epochs,
                "num_workers": setting.num_workers,
                "batch_size_per_worker": 32,
                "seed": seed,
                "device": "cpu",
                "threads_per_worker": 1,
                "timeout_s": 3600,
            }
        )
        with LocalLauncher(setting.num_workers) as launcher:
            training = Trainer(config, self._dataset, launcher)
            state = training.fit(None, lambda _state: None)
            test = training.evaluate(state.model, "test").accuracy
        validation = state.history[-1]["validation_accuracy"]
        return Result(setting.num_workers, setting.frequency, rate, seed, self._epochs, validation, test, commit())


def _print(results: dict[Setting, list[Result]]) -> None:
    plain = _mean(results.get(PLAIN, []))
    rows = []
    in_order = sorted(results.items(), key=lambda item: (item[0].num_workers, FREQUENCIES.index(item[0].frequency)))
    for setting, found in in_order:
        name = "plain, no averaging" if setting == PLAIN else setting.frequency
        tests = [100 * result.test for result in found]
        spread = f"{min(tests):.2f} to {max(tests):.2f}"
        difference = f"{_mean(found) - plain:+.2f}"
        rows.append(
            [setting.num_workers, name, f"{found[0].rate:g}", len(found), f"{_mean(found):.2f}", spread, difference]
        )
    head = ["workers", "averaging every", "best rate", "seeds", "mean test accuracy, %", "range", "points from plain"]
    print_table(head, rows)
    print(f"trained at commits: {', '.join(sorted({r.commit for found in results.values() for r in found}))}")
    print(f"the outer optimizer: {OUTER}")


def _mean(found: Sequence[Result]) -> float:
    return 100 * statistics.mean(result.test for result in found) if found else float("nan")


def _draw(results: dict[Setting, list[Result]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for num_workers, marker, color in zip(WORKERS, "os", ("C0", "C1"), strict=True):
        mine = {s.frequency: found for s, found in results.items() if s.num_workers == num_workers and found}
        means = [_mean(mine.get(frequency, [])) for frequency in FREQUENCIES]
        # The outer optimizer is no further step on the way to rarer averaging, so no line leads there.
        axes.plot(FREQUENCIES[:-1], means[:-1], marker=marker, color=color, label=f"{num_workers} workers")
        axes.plot(FREQUENCIES[-1:], means[-1:], marker=marker, color=color)
        for frequency, found in mine.items():
            axes.scatter([frequency] * len(found), [100 * r.test for r in found], s=10, color=color, alpha=0.5)
    if results.get(PLAIN):
        axes.axhline(_mean(results[PLAIN]), color="gray", linestyle="--", label="one worker, plain")
    axes.set_xlabel("minibatches between two averagings")
    axes.set_ylabel("test accuracy, % (mean and each seed)")
    axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
