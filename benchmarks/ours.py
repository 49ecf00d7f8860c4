"""Our side of a comparison: a config of the LeNet recipe, epochs one after the other, and where their time went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.processes import RATE, WEIGHT_DECAY
from shardmean.model.config.training import TrainingConfig
from shardmean.model.training.phase_timer import PHASES

if TYPE_CHECKING:
    from shardmean.model.training.trainer import Trainer

BATCH = 32
MANY_EPOCHS = 100_000
ACCOUNT = (*PHASES, "spark")


def recipe(**changes: Any) -> TrainingConfig:
    """Deeplearning4j's LeNet recipe for two workers on the CPU, with some sections of the config changed."""
    settings = {
        "optimizer": {"name": "adagrad", "learning_rate": RATE, "weight_decay": WEIGHT_DECAY},
        "averaging": {"frequency": 5},
        "num_epochs": MANY_EPOCHS,
        "num_workers": 2,
        "batch_size_per_worker": BATCH,
        "device": "cpu",
        "threads_per_worker": 1,
        # As the loops by hand that we are compared with; what it gains is told apart (benchmarks/precision.py).
        "compute": {"channels_last": "never"},
    }
    return TrainingConfig.model_validate(settings | changes)


class Epochs:
    """Each call trains one more epoch."""

    def __init__(self, training: Trainer) -> None:
        self._training = training
        self.state = training.first_state()

    def __call__(self) -> None:
        """From the driver's call to the new state in the driver's hands."""
        self.state = self._training.next_state(self.state)

    def account(self) -> list[str]:
        """Seconds of the last epoch by phase, the workers' mean, and of Spark beside them; cells for `ACCOUNT`."""
        metrics = self.state.history[-1]
        return [f"{metrics.get(f'{phase}_s', 0.0):.2f}" for phase in ACCOUNT]
