"""Learning-rate schedules, clipping, Nesterov's outer step and early stopping, against what they are defined to be."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardmean.model.config.optimizer import ScheduleConfig
from shardmean.model.config.training import AveragingConfig, MetricName, TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.optimization.averaging import Averager
from shardmean.model.optimization.replica import Replica, rate_factor
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer, score
from tests.model.counting import counted


@given(
    name=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 500),
    final=st.floats(0, 1),
    total=st.integers(501, 10_000),
)
def test_a_schedule_rises_from_nothing_to_all_and_falls_to_its_end(name, warmup, final, total):
    schedule = ScheduleConfig(name=name, warmup_examples=warmup, final_fraction=final)
    factors = np.array([rate_factor(schedule, number, total) for number in range(total + 1)])
    assert factors.min() >= 0
    assert factors.max() <= 1 + 1e-12
    assert factors[warmup] == 1
    assert (np.diff(factors[: warmup + 1]) > 0).all()
    assert (np.diff(factors[warmup:]) <= 1e-12).all()
    assert factors[-1] == pytest.approx(1 if name == "constant" else final, abs=1e-9)


def test_a_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for number in range(50):
        ours = rate_factor(ScheduleConfig(name="cosine", final_fraction=0.1), number, 50)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    rows = {"train": 96, "validation": 32}
    return make_dataset(tmp_path_factory.mktemp("schedule"), rows=rows, shape=(1, 28, 28), shard_bytes=20_000)


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"num_workers": 1, "num_epochs": 3, "device": "cpu"} | changes)


def test_clipping_and_the_rate_are_torchs(dataset):
    optimizer = {"name": "sgd", "learning_rate": 0.5, "clip_norm": 0.01}
    torch.manual_seed(0)
    replica = Replica(config(optimizer=optimizer), dataset.manifest, "cpu")
    batch = dataset.read(dataset.manifest.shards_of("train")[0], 0, 16)
    before = [p.detach().clone() for p in replica.model.parameters()]
    loss = torch.nn.functional.cross_entropy(
        replica.model(torch.from_numpy(batch.features_NCHW)), torch.from_numpy(batch.labels_N)
    )
    gradients = torch.autograd.grad(loss, list(replica.model.parameters()))
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    assert norm > 0.01
    replica.backward(batch)
    replica.update(0.25)
    for was, gradient, now in zip(before, gradients, replica.model.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), was - 0.5 * 0.25 * gradient * (0.01 / norm), rtol=1e-4, atol=1e-7)


def test_the_rate_reaches_every_step(dataset, monkeypatch):
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noting(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": {"name": "linear"}}
    with LocalLauncher(1) as launcher:
        Trainer(config(optimizer=optimizer), dataset, launcher).fit(None, lambda state: None)
    assert rates == pytest.approx([0.1 * (1 - step / 9) for step in range(9)], abs=1e-3)


@pytest.mark.parametrize("metric", ["accuracy", "ece", "roc_auc_macro"])
def test_training_ends_when_patience_is_out_and_keeps_the_best_state(dataset, metric):
    # Images are noise: validation can't go on getting better for long.
    stopping = {"metric": metric, "patience": 2}
    states = {}
    with LocalLauncher(1) as launcher:
        training = Trainer(config(num_epochs=60, early_stopping=stopping), dataset, launcher)
        state = training.fit(None, lambda state: states.update({state.epoch: state}))
        again = training.fit(state, lambda state: pytest.fail("a training that has ended stays so"))
    assert state.epoch < 60
    assert state.epoch - state.best_epoch == 2
    assert again is state
    sign = -1 if metric == "ece" else 1
    metrics = [sign * epoch[f"validation_{metric}"] for epoch in state.history]
    assert metrics[state.best_epoch - 1] == max(metrics)
    best = states[state.best_epoch].model
    assert all(torch.equal(value, best[name]) for name, value in state.best_model.items())


def metrics_of(found: list[int]) -> dict[str, float]:
    """What an epoch's history holds when rows of classes 0 to 5 are taken for `found`, with probability 0.9."""
    labels_B = np.arange(len(found)) % 6
    probabilities_BK = np.full((len(found), 6), 0.02, dtype=np.float32)
    probabilities_BK[np.arange(len(found)), found] = 0.9
    losses_B = -np.log(probabilities_BK[np.arange(len(found)), labels_B])
    evaluation = counted(labels_B, probabilities_BK, losses_B)
    return {"train_loss": 0.5} | {f"validation_{name}": value for name, value in evaluation.metrics().items()}


@pytest.mark.parametrize("metric", get_args(MetricName))
def test_each_figure_has_its_direction(metric):
    good, bad = metrics_of([0, 1, 2, 3, 4, 5] * 2), metrics_of([5, 4, 3, 2, 1, 0] * 2)
    assert good[f"validation_{metric}"] != bad[f"validation_{metric}"]
    assert score(good, metric, is_validated=True) > score(bad, metric, is_validated=True)


@pytest.mark.parametrize("metric", get_args(MetricName))
def test_without_a_validation_split_the_training_loss_decides(metric):
    none = {f"validation_{name}": 0.0 for name in get_args(MetricName)}
    low, high = {"train_loss": 0.1} | none, {"train_loss": 0.2} | none
    assert score(low, metric, is_validated=False) > score(high, metric, is_validated=False)


def test_a_validation_loss_of_zero_is_better_than_a_small_one():
    zero, small = ({"train_loss": 1.0, "validation_loss": loss} for loss in (0.0, 1e-6))
    assert score(zero, "loss", is_validated=True) > score(small, "loss", is_validated=True)


def test_a_figure_that_a_dataset_does_not_have_is_refused_before_a_worker_starts(dataset):
    stopping = {"metric": "top_5_accuracy"}
    with LocalLauncher(1) as launcher, pytest.raises(UserError, match=r"needs more than 5 classes, .* has 3: choose"):
        Trainer(config(early_stopping=stopping), dataset, launcher).fit(None, lambda state: None)


class _Alone:
    """A member without peers."""

    sums_on = "cpu"

    def all_reduce(self, values: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """The sum over one worker."""


def test_nesterovs_outer_step_is_torchs():
    model = torch.nn.Linear(3, 2)
    reference = [p.detach().clone().requires_grad_() for p in model.parameters()]
    outer = torch.optim.SGD(reference, lr=0.7, momentum=0.9, nesterov=True)
    averaging = AveragingConfig(outer={"learning_rate": 0.7, "momentum": 0.9, "nesterov": True})
    averager = Averager(model, torch.optim.SGD(model.parameters(), lr=1), averaging, _Alone(), None)
    for round_index in range(4):
        with torch.no_grad():
            for parameter, theirs in zip(model.parameters(), reference, strict=True):
                parameter += torch.randn_like(parameter)
                theirs.grad = theirs - parameter
        outer.step()
        averager.average(1.0, rank=0, round_index=round_index)
        for parameter, theirs in zip(model.parameters(), reference, strict=True):
            torch.testing.assert_close(parameter, theirs, rtol=1e-5, atol=1e-6)
