"""Training's laws: equal to a plain PyTorch loop, to one big batch, to itself when resumed, and each example once."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.training.environment import this_environment
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.messages import Failure, Rounds, Task
from shardmean.model.training.worker import evaluate_split, train_rounds
from shardmean.model.training.worker_runtime import attempt, flushes_denormals, seeded

from .fitting import batches_by_hand, bits, fit, fresh_lenet, plan_of, step, training

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardmean.model.dataset.reader import Dataset

OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": ({"name": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.01)),
    "momentum": ({"name": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "adam": ({"name": "adam"}, lambda p: torch.optim.Adam(p, lr=0.01)),
    "adamw": ({"name": "adamw", "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    "adagrad": ({"name": "adagrad"}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
    "rmsprop": ({"name": "rmsprop", "weight_decay": 0.1}, lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1)),
    "nadam": ({"name": "nadam"}, lambda p: torch.optim.NAdam(p, lr=0.01)),
    "radam": ({"name": "radam"}, lambda p: torch.optim.RAdam(p, lr=0.01)),
    "adamax": ({"name": "adamax"}, lambda p: torch.optim.Adamax(p, lr=0.01)),
    "adadelta": ({"name": "adadelta"}, lambda p: torch.optim.Adadelta(p, lr=0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("policy", ["average", "keep", "reset"])
def test_one_worker_is_a_plain_loop_to_the_bit(lenet_data, launchers, one_thread, name, policy):
    options, make = OPTIMIZERS[name]
    model = fresh_lenet(lenet_data)
    optimizer, losses = make(model.parameters()), []
    for epoch in range(2):
        loss = 0.0
        plan = plan_of(lenet_data, num_workers=1, frequency=3, epoch=epoch)
        for index, batch in enumerate(batches_by_hand(lenet_data, plan, 0)):
            loss += step(model, optimizer, *batch)
            if policy == "reset" and index % 3 == 2:
                optimizer = make(model.parameters())
        if policy == "reset":
            optimizer = make(model.parameters())
        losses.append(loss / 61)
    averaging = {"frequency": 3, "optimizer_state": policy}
    state = fit(training(lenet_data, launchers, optimizer=options, averaging=averaging, num_epochs=2))
    assert bits(state.model) == bits(dict(model.state_dict()))
    if policy != "reset":
        assert bits(state.optimizers[0]["state"]) == bits(optimizer.state_dict()["state"])
    assert [metrics["train_loss"] for metrics in state.history] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("num_workers", [2, 3])
def test_averaging_every_step_is_one_step_on_the_joint_batch(lenet_data, launchers, num_workers, momentum):
    model = fresh_lenet(lenet_data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    plan = plan_of(lenet_data, num_workers=num_workers, frequency=1, epoch=0)
    parts = [list(batches_by_hand(lenet_data, plan, rank)) for rank in range(num_workers)]
    assert len({len(part) for part in parts}) == 1 + (num_workers == 3), "an idle worker in the last round of three"
    for index in range(plan.num_rounds):
        joint = [part[index] for part in parts if index < len(part)]
        step(model, optimizer, torch.cat([images for images, _ in joint]), torch.cat([labels for _, labels in joint]))
    options = {"name": "sgd", "momentum": momentum}
    trained = training(
        lenet_data, launchers, optimizer=options, averaging={"frequency": 1}, num_epochs=1, num_workers=num_workers
    )
    state = fit(trained)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state.model[name], tensor, rtol=1e-6, atol=1e-6)


def mean_by_hand(states: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    return {k: sum(w * s[k].double() for w, s in zip(weights, states, strict=True)).float() for k in states[0]}


def average_by_hand(dataset: Dataset, num_workers: int, policy: str, outer: tuple[float, float]) -> nn.Module:
    """Two epochs of rounds of three steps, one replica after the other; SlowMo on the means."""
    models = [fresh_lenet(dataset) for _ in range(num_workers)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models]
    previous = {k: v.clone() for k, v in models[0].state_dict().items()}
    slow = {k: torch.zeros_like(v) for k, v in previous.items()}
    for epoch in range(2):
        plan = plan_of(dataset, num_workers=num_workers, frequency=3, epoch=epoch)
        parts = [batches_by_hand(dataset, plan, rank) for rank in range(num_workers)]
        for _ in range(plan.num_rounds):
            batches = [list(itertools.islice(part, 3)) for part in parts]
            for model, optimizer, mine in zip(models, optimizers, batches, strict=True):
                for batch in mine:
                    step(model, optimizer, *batch)
            seen = [sum(len(labels) for _, labels in mine) for mine in batches]
            weights = [count / sum(seen) for count in seen]
            mean = mean_by_hand([model.state_dict() for model in models], weights)
            slow = {k: outer[1] * slow[k] + previous[k] - mean[k] for k in slow}
            previous = {k: previous[k] - outer[0] * slow[k] for k in slow}
            for model in models:
                model.load_state_dict(previous)
            if policy == "average":
                average_momentum(models, optimizers, weights)
    return models[0]


def average_momentum(models: list[nn.Module], optimizers: list[torch.optim.Optimizer], weights: list[float]) -> None:
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, parameters, strict=True)]
        mean = mean_by_hand(states, weights)["momentum_buffer"]
        for state in states:
            state["momentum_buffer"].copy_(mean)


@pytest.mark.parametrize("policy", ["average", "keep"])
@pytest.mark.parametrize("outer", [(1.0, 0.0), (0.8, 0.6)])
def test_rounds_over_epochs_are_as_averaged_by_hand(lenet_data, launchers, policy, outer):
    averaging = {"frequency": 3, "optimizer_state": policy, "outer": {"learning_rate": outer[0], "momentum": outer[1]}}
    options = {"name": "sgd", "momentum": 0.9}
    state = fit(training(lenet_data, launchers, optimizer=options, averaging=averaging, num_epochs=2, num_workers=2))
    for name, tensor in average_by_hand(lenet_data, 2, policy, outer).state_dict().items():
        torch.testing.assert_close(state.model[name], tensor, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_example_is_seen_exactly_once_an_epoch(tiny_data, launchers, num_workers):
    trained = training(tiny_data, launchers, optimizer={"name": "sgd"}, num_workers=num_workers)
    state = {"model": trained.first_state().model, "optimizer": None, "outer_momentum": None}
    orders = []
    for epoch in range(2):
        whole = Rounds(epoch=epoch, first=0, stop=plan_of(tiny_data, num_workers=num_workers, epoch=epoch).num_rounds)
        tasks = {"rounds": whole, "trace_ids": True}
        reports, _ = trained._run(train_rounds, lambda tasks=tasks: ([state] * num_workers, tasks))
        ids = [example_id for report in reports for example_id in report.ids]
        assert Counter(ids) == Counter(f"train-{row:05d}" for row in range(50))
        assert [report.num_examples for report in reports] == [len(report.ids) for report in reports]
        orders.append(ids)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_diverging_training_names_the_worker(lenet_data, launchers, num_workers):
    # LeNet, because BatchNorm forgives any learning rate.
    huge = {"name": "sgd", "learning_rate": 1e6}
    with pytest.raises(UserError, match=r"^worker [01] on \S+: worker [01] diverged: .*lower optimizer.learning_rate"):
        fit(training(lenet_data, launchers, optimizer=huge, num_workers=num_workers))


def test_without_a_validation_split_there_are_no_figures_of_it(make_dataset, launchers, tmp_path):
    dataset = make_dataset(tmp_path, rows={"train": 20}, shape=(3, 8, 8))
    (metrics,) = fit(training(dataset, launchers, optimizer={"name": "sgd"}, num_epochs=1)).history
    assert metrics["train_loss"] > 0
    assert not [name for name in metrics if name.startswith("validation")]


def test_a_lost_shard_is_the_worlds_fault_and_found_at_once(make_dataset, launchers, tmp_path):
    dataset = make_dataset(tmp_path, rows={"train": 50}, shape=(3, 8, 8))
    lost = dataset.manifest.shards_of("train")[0].name
    (tmp_path / "shards" / lost).unlink()
    started = time.monotonic()
    with pytest.raises(RetryableError, match=rf"worker [01] on .*{lost}: missing"):
        fit(training(dataset, launchers, optimizer={"name": "sgd"}, num_workers=2))
    assert time.monotonic() - started < 60, "the peer waited for its timeout"


@pytest.mark.parametrize("num_workers", [2, 3])
def test_evaluation_does_not_depend_on_the_number_of_workers(tiny_data, launchers, num_workers):
    alone = training(tiny_data, launchers, optimizer={"name": "sgd"})
    model = alone.first_state().model
    several = training(tiny_data, launchers, optimizer={"name": "sgd"}, num_workers=num_workers)
    one, other = alone.evaluate(model, "train"), several.evaluate(model, "train")
    assert one.metrics() == pytest.approx(other.metrics(), rel=1e-6)
    assert one.num_examples == other.num_examples == 50


@pytest.mark.parametrize("work", [train_rounds, evaluate_split])
@pytest.mark.parametrize("fails", [False, True])
def test_a_task_puts_back_what_it_sets_in_its_process(lenet_data, launchers, one_thread, work, fails):
    options = {"name": "sgd", "learning_rate": 1e6 if fails else 0.01}
    trained = training(lenet_data, launchers, optimizer=options, threads_per_worker=2)
    state = {"model": trained.first_state().model, "optimizer": None, "outer_momentum": None}
    digest = "no such version" if fails and work is evaluate_split else lenet_data.manifest.digest
    task = Task(
        trained.config, lenet_data.uri, digest, 0, 1, state, launchers[1].rendezvous.new_address(), this_environment(),
        rounds=Rounds(epoch=0, first=0, stop=plan_of(lenet_data, num_workers=1, epoch=0).num_rounds),
    )  # fmt: skip
    generator_before = torch.get_rng_state()
    assert isinstance(attempt(work, task, "cpu"), Failure) == fails
    assert torch.get_num_threads() == 1
    assert not flushes_denormals()
    assert torch.equal(torch.get_rng_state(), generator_before), "the process's generator was drawn from"


def test_numbers_too_small_for_full_speed_are_zero_in_a_task(lenet_data, launchers):
    """A dead filter's weights decay to such numbers, and an epoch of LeNet took 1.5 times as long."""
    task = Task(TrainingConfig(), "", "", 0, 1, {}, launchers[1].rendezvous.new_address(), this_environment())
    with seeded(task, "cpu"):
        assert flushes_denormals()
        layer = torch.nn.Linear(4, 4)
        torch.nn.init.constant_(layer.weight, 1e-39)
        assert not (layer.weight * 1.0).any()
        assert layer(torch.zeros(1, 4)).isfinite().all()
    assert not flushes_denormals()


def _vanish(task: Task, device: str) -> None:
    os._exit(3)


def test_a_lost_worker_process_is_the_worlds_fault():
    with LocalLauncher(2) as launcher:
        address = launcher.rendezvous.new_address()
        task = Task(TrainingConfig(), "nowhere", "", 0, 1, {}, address, this_environment())
        with pytest.raises(RetryableError):
            launcher.run(_vanish, [task])


def test_workers_of_other_versions_are_refused_with_both_hosts_and_values(tiny_data, launchers):
    trained = training(tiny_data, launchers, optimizer={"name": "sgd"})
    state = {"model": trained.first_state().model, "optimizer": None, "outer_momentum": None}
    theirs = dataclasses.replace(this_environment(), host="driver-host", torch="1.13.1")
    address = launchers[1].rendezvous.new_address()
    task = Task(trained.config, tiny_data.uri, tiny_data.manifest.digest, 0, 1, state, address, theirs)
    failure = attempt(train_rounds, task, "cpu")
    assert isinstance(failure, Failure)
    assert failure.kind == "user", "repeating it cannot help"
    here = this_environment()
    said = f"{here.host} and driver-host run different versions (torch is {here.torch} here and 1.13.1 there)"
    assert said in failure.message
