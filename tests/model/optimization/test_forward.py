"""Precision, memory format, compilation and class weights: what each may change, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.optimization.replica import Replica, build_model, class_weights
from tests.model.fitting import batches_by_hand, bits, fit, fresh_lenet, plan_of, training

BFLOAT16 = {"precision": "bfloat16"}
CHANNELS_LAST = {"channels_last": "always"}
COMPILED = {"compile": "always"}


def test_bfloat16_is_a_plain_loop_under_autocast_to_the_bit(lenet_data, launchers, one_thread):
    model = fresh_lenet(lenet_data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for images, labels in batches_by_hand(lenet_data, plan_of(lenet_data, num_workers=1, epoch=0), 0):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(images.contiguous(memory_format=torch.channels_last))
        nn.functional.cross_entropy(scores.float(), labels).backward()
        optimizer.step()
    state = fit(training(lenet_data, launchers, optimizer={"name": "sgd"}, num_epochs=1, compute=BFLOAT16))
    assert bits(state.model) == bits(dict(model.state_dict()))
    assert {tensor.dtype for tensor in state.model.values()} == {torch.float32}
    assert bits(state.model) != bits(trained(lenet_data, launchers, {}))


def trained(dataset, launchers, compute, **other):
    settings = {"optimizer": {"name": "sgd", "momentum": 0.9}, "num_epochs": 1} | other
    return fit(training(dataset, launchers, compute=compute, **settings)).model


@pytest.mark.parametrize("num_workers", [1, 2])
def test_channels_last_changes_rounding_alone(tiny_data, launchers, one_thread, num_workers):
    usual = trained(tiny_data, launchers, {"channels_last": "never"}, num_workers=num_workers)
    other = trained(tiny_data, launchers, CHANNELS_LAST, num_workers=num_workers)
    assert bits(other) == bits(trained(tiny_data, launchers, {}, num_workers=num_workers)), "the default on a CPU"
    for name, tensor in usual.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compute", [BFLOAT16 | CHANNELS_LAST, CHANNELS_LAST])
def test_resumed_is_uninterrupted_to_the_bit(tiny_data, launchers, compute):
    states = []
    whole = training(
        tiny_data, launchers, optimizer={"name": "adam"}, num_workers=2, num_epochs=2, compute=compute,
        checkpoint_every_rounds=1, averaging={"frequency": 2},
    )  # fmt: skip
    end = whole.fit(None, states.append)
    assert len(states) > 3
    assert bits(fit(whole, states[1]).model) == bits(end.model)


def test_the_model_is_evaluated_in_float32_whatever_it_trains_in(tiny_data, launchers):
    def metrics(compute):
        one = training(tiny_data, launchers, optimizer={"name": "sgd"}, compute=compute)
        return one.evaluate(one.first_state().model, "train").metrics()

    assert metrics(BFLOAT16) == metrics({})


def test_auto_is_channels_last_where_that_was_measured_to_help(tiny_data):
    """The laws of training to the bit are of these defaults."""
    layers = [{"layer": "conv", "channels": 4}, {"layer": "flatten"}]
    for settings, is_last in [({"network": "small_cnn"}, True), ({"network": "layers", "layers": layers}, False)]:
        config = TrainingConfig(**settings)
        weights = [
            Replica(config, tiny_data.manifest, "cpu").model.body[0].weight,
            build_model(config, tiny_data.manifest).body[0].weight,
        ]
        assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [is_last, False]


def test_a_compiled_step_is_the_step_but_for_rounding(tiny_data, launchers, monkeypatch):
    # Inductor takes half a minute for one product; all before it is real.
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, *, mode, dynamic: real(model, backend="eager", dynamic=dynamic))
    small = {"network": "layers", "layers": [{"layer": "flatten"}]}
    one = training(tiny_data, launchers, optimizer={"name": "sgd"})
    replicas = [
        Replica(TrainingConfig(**small, compute=compute), tiny_data.manifest, "cpu") for compute in ({}, COMPILED)
    ]
    replicas[1].model.load_state_dict(replicas[0].model.state_dict())
    shard = one.dataset.manifest.shards_of("train")[0]
    batch = one.dataset.read(shard, 0, shard.num_examples)
    for replica in replicas:
        replica.backward(batch)
        replica.update(1.0)
        assert list(replica.model.state_dict()) == ["body.1.weight", "body.1.bias"]
    for one_tensor, other in zip(*(replica.model.parameters() for replica in replicas), strict=True):
        torch.testing.assert_close(one_tensor, other, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_compilation_is_refused(tiny_data, monkeypatch):
    def compiles_nothing(model, **_options):
        def forward(_images):
            raise torch._dynamo.exc.TorchDynamoException("g++ not found\nmore lines")

        return forward

    monkeypatch.setattr(torch, "compile", compiles_nothing)
    replica = Replica(TrainingConfig(network="small_cnn", compute=COMPILED), tiny_data.manifest, "cpu")
    with pytest.raises(
        UserError, match=r"torch.compile failed \(TorchDynamoException: g\+\+ not found\): it needs a C"
    ):
        replica._compute.scores(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_cuda_graphs_need_cuda(tiny_data):
    config = TrainingConfig(network="small_cnn", compute={"compile": "cuda_graphs"})
    with pytest.raises(UserError, match=r"compute.compile is cuda_graphs, but a worker .* its cpu: use always"):
        Replica(config, tiny_data.manifest, "cpu")


def test_class_weights_are_scikit_learns_balanced_ones(make_dataset, tmp_path):
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    manifest = make_dataset(tmp_path, rows={"train": 90, "validation": 5}, num_classes=4).manifest
    counts = manifest.num_per_class("train")
    labels = np.repeat(np.arange(4), counts)
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights_K = class_weights(manifest)
    np.testing.assert_allclose(weights_K, expected, rtol=1e-6)
    assert float(weights_K[labels].double().mean()) == pytest.approx(1), "the scale of the loss stays"


def test_a_class_without_examples_has_no_weight(make_dataset, tmp_path):
    manifest = make_dataset(tmp_path, rows={"train": 1}, num_classes=3).manifest
    assert sorted(class_weights(manifest).tolist()) == [0, 0, 1]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("averaging", [{"frequency": 1}, {"frequency": 3, "synchronous_steps": "all"}])
def test_with_class_weights_workers_of_every_step_are_one_of_the_joint_batch(
    lenet_data, launchers, one_thread, num_workers, averaging
):
    """The loss is the mean over examples of weight x cross-entropy, so that means of workers' means are right."""
    model = fresh_lenet(lenet_data)
    weights_K = class_weights(lenet_data.manifest)
    assert len(set(weights_K.tolist())) == 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    plan = plan_of(lenet_data, num_workers=num_workers, frequency=averaging["frequency"], epoch=0)
    parts = [list(batches_by_hand(lenet_data, plan, rank)) for rank in range(num_workers)]
    total = 0.0
    for index in range(max(len(part) for part in parts)):
        joint = [part[index] for part in parts if index < len(part)]
        images, labels = torch.cat([images for images, _ in joint]), torch.cat([labels for _, labels in joint])
        optimizer.zero_grad()
        losses = weights_K[labels] * nn.functional.cross_entropy(model(images), labels, reduction="none")
        losses.mean().backward()
        optimizer.step()
        total += losses.sum().item()
    settings = {"optimizer": {"name": "sgd"}, "num_epochs": 1, "class_weights": "balanced", "averaging": averaging}
    state = fit(training(lenet_data, launchers, num_workers=num_workers, **settings))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state.model[name], tensor, rtol=1e-5, atol=2e-6)
    assert state.history[0]["train_loss"] == pytest.approx(total / 61, rel=1e-5)
