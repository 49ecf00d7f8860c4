"""Synchronous steps: gradients averaged each step are one step on the joint batch, whatever the optimizer."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.model.fitting import batches_by_hand, bits, fit, fresh_lenet, plan_of, step, training

OPTIMIZERS = {
    "momentum": ({"name": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "adam": ({"name": "adam"}, lambda p: torch.optim.Adam(p, lr=0.01)),
    "adagrad": ({"name": "adagrad"}, lambda p: torch.optim.Adagrad(p, lr=0.01)),
}


def joint_batches(dataset, num_workers: int, *, frequency: int, epoch: int):
    """Each step's minibatches of all workers as one; a worker that has none left adds nothing."""
    plan = plan_of(dataset, num_workers=num_workers, frequency=frequency, epoch=epoch)
    parts = [batches_by_hand(dataset, plan, rank) for rank in range(num_workers)]
    for batches in itertools.zip_longest(*parts):
        present = [batch for batch in batches if batch is not None]
        yield torch.cat([images for images, _ in present]), torch.cat([labels for _, labels in present])


@pytest.mark.parametrize("frequency", [2, "epoch"])
@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_are_steps_on_the_joint_batch(lenet_data, launchers, one_thread, name, num_workers, frequency):
    options, make = OPTIMIZERS[name]
    model = fresh_lenet(lenet_data)
    optimizer = make(model.parameters())
    for epoch in range(2):
        for batch in joint_batches(lenet_data, num_workers, frequency=frequency, epoch=epoch):
            step(model, optimizer, *batch)
    averaging = {"frequency": frequency, "synchronous_steps": "all"}
    state = fit(
        training(lenet_data, launchers, optimizer=options, averaging=averaging, num_epochs=2, num_workers=num_workers)
    )
    # Adam divides by roots of means that may be near zero, which makes more of a sum's rounding than the others do.
    atol = 5e-5 if name == "adam" else 2e-5
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(state.model[key], tensor, rtol=2e-5, atol=atol)


def test_post_local_training_is_synchronous_for_the_given_steps_and_local_after(lenet_data, launchers, one_thread):
    """61 examples for two workers are four steps each an epoch: five synchronous steps end within the second epoch."""
    model = fresh_lenet(lenet_data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in joint_batches(lenet_data, 2, frequency="epoch", epoch=0):
        step(model, optimizer, *batch)
    plan = plan_of(lenet_data, num_workers=2, frequency="epoch", epoch=1)
    (first, *_) = joint_batches(lenet_data, 2, frequency="epoch", epoch=1)
    step(model, optimizer, *first)
    replicas = []
    for rank in range(2):
        replica = fresh_lenet(lenet_data)
        replica.load_state_dict(model.state_dict())
        own = torch.optim.SGD(replica.parameters(), lr=0.01)
        for batch in list(batches_by_hand(lenet_data, plan, rank))[1:]:
            step(replica, own, *batch)
        replicas.append(replica.state_dict())
    weights = [plan.examples_in_round(rank, 0) / 61 for rank in range(2)]
    averaging = {"frequency": "epoch", "synchronous_steps": 5}
    state = fit(
        training(lenet_data, launchers, optimizer={"name": "sgd"}, averaging=averaging, num_epochs=2, num_workers=2)
    )
    for key in replicas[0]:
        mean = weights[0] * replicas[0][key] + weights[1] * replicas[1][key]
        torch.testing.assert_close(state.model[key], mean, rtol=2e-5, atol=2e-6)


def test_no_synchronous_step_differs_from_all(lenet_data, launchers):
    def parameters(synchronous_steps):
        averaging = {"frequency": "epoch", "synchronous_steps": synchronous_steps}
        config = {"optimizer": {"name": "sgd"}, "averaging": averaging, "num_epochs": 1, "num_workers": 2}
        return bits(fit(training(lenet_data, launchers, **config)).model)

    none, some, every = parameters(0), parameters(2), parameters("all")
    assert none != some != every != none
    assert parameters(10**6) == every
