"""Fine-tuning's laws: what is frozen keeps its bits, a training starts from the model it is told, or says why not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.networks.classifier import Classifier
from shardmean.model.optimization.fine_tuning import PretrainedModel, freeze, normalized_as
from shardmean.model.optimization.replica import build_model
from tests.model.fitting import batches_by_hand, bits, fit, fresh_lenet, plan_of, step, training

CONVOLUTIONS = ["[0-9].*"]  # of small_cnn; its head is 15.*


def freezing(dataset, launchers, patterns, *, num_workers=1, optimizer=None, **other):
    return training(
        dataset, launchers, optimizer=optimizer or {"name": "adam"}, num_workers=num_workers,
        fine_tuning={"freeze": patterns}, **{"num_epochs": 1, **other},
    )  # fmt: skip


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize(
    "averaging",
    [
        {"frequency": 1},
        {"frequency": 2, "synchronous_steps": 3},
        {"frequency": 2, "comm_dtype": "bfloat16", "outer": {"learning_rate": 0.7, "momentum": 0.9}},
    ],
)
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(tiny_data, launchers, num_workers, averaging):
    trained = freezing(tiny_data, launchers, CONVOLUTIONS, num_workers=num_workers, averaging=averaging)
    first, last = trained.first_state().model, fit(trained).model
    changed = {name for name in first if bits(first[name]) != bits(last[name])}
    assert changed == {"body.15.weight", "body.15.bias"}, "three means of a third are not the value: it is not averaged"


def test_a_batch_norms_statistics_stay_only_where_all_of_it_does(tiny_data, launchers):
    trained = freezing(tiny_data, launchers, ["1.*", "5.weight"])
    first, last = trained.first_state().model, fit(trained).model
    same = {name for name in first if bits(first[name]) == bits(last[name])}
    assert same == {
        "body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked",
        "body.5.weight",
    }  # fmt: skip


def test_frozen_parameters_are_given_to_no_optimizer(tiny_data, launchers):
    state = fit(freezing(tiny_data, launchers, CONVOLUTIONS, num_workers=2))
    assert len(state.optimizers[0]["state"]) == 2
    assert len(state.optimizers[0]["param_groups"][0]["params"]) == 2


def test_a_training_with_frozen_parameters_resumes_to_the_bit(tiny_data, launchers):
    states = []
    whole = freezing(
        tiny_data, launchers, ["0.*", "1.*"], num_workers=2, num_epochs=2, checkpoint_every_rounds=1,
        averaging={"frequency": 2, "outer": {"momentum": 0.5}},
    )  # fmt: skip
    end = whole.fit(None, states.append)
    assert bits(fit(whole, states[2]).model) == bits(end.model)


def test_one_worker_with_frozen_parameters_is_a_plain_loop_to_the_bit(lenet_data, launchers, one_thread):
    model = fresh_lenet(lenet_data)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("body.0."))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for batch in batches_by_hand(lenet_data, plan_of(lenet_data, num_workers=1, epoch=0), 0):
        step(model, optimizer, *batch)
    state = fit(freezing(lenet_data, launchers, ["0.*"]))
    assert bits(state.model) == bits(dict(model.state_dict()))


@pytest.mark.parametrize(("patterns", "message"), [
    (["layer1.*"], r"no parameter's name matches 'layer1.\*'; names here are 0.weight, 1.weight, .*, ..., 15.weight"),
    (["*"], "matches every parameter, so there is nothing to train: freeze fewer"),
])  # fmt: skip
def test_patterns_that_make_no_sense(tiny_data, patterns, message):
    with pytest.raises(UserError, match=message):
        build_model(TrainingConfig(network="small_cnn", fine_tuning={"freeze": patterns}), tiny_data.manifest)


def test_statistics_without_parameters_go_on():
    body = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = Classifier(body, [0.5], [0.5])
    freeze(model, ["1.*"])
    model.train()
    assert [module.training for module in body] == [True, False, True, True]


def pretrained_of(trained, state=None, **model_spec) -> PretrainedModel:
    state = state or fit(trained)
    pretrained = PretrainedModel("models:/pets/3", state.model_spec, state.best_model or state.model)
    return dataclasses.replace(pretrained, model_spec=pretrained.model_spec | model_spec)


def tuned(trained, pretrained, **fine_tuning):
    """The same training, started from `pretrained`."""
    config = trained.config.model_dump() | {"fine_tuning": {"start_from": "models:/pets@champion", **fine_tuning}}
    return dataclasses.replace(
        trained, config=normalized_as(TrainingConfig(**config), pretrained.model_spec), pretrained=pretrained
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tiny_data, launchers):
    trained = training(tiny_data, launchers, optimizer={"name": "sgd"}, num_epochs=1)
    return trained, fit(trained)


def test_a_training_starts_from_the_best_state_of_its_pretrained_model(source):
    trained, state = source
    other_best = {name: tensor + 1 for name, tensor in state.model.items()}
    assert bits(tuned(trained, pretrained_of(trained, state)).first_state().model) == bits(state.best_model)
    best = dataclasses.replace(state, best_model=other_best)
    assert bits(tuned(trained, pretrained_of(trained, best)).first_state().model) == bits(other_best)
    within = dataclasses.replace(state, best_model={})
    assert bits(tuned(trained, pretrained_of(trained, within)).first_state().model) == bits(state.model)


def test_it_starts_with_the_metrics_of_its_pretrained_model(source, make_dataset, tmp_path):
    """Also where the DataSet's own normalization is another one."""
    trained, state = source
    pretrained = pretrained_of(trained, state, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    again = tuned(trained, pretrained)
    with_it = trained.config.model_dump() | {"normalization": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
    as_trained = dataclasses.replace(trained, config=TrainingConfig(**with_it))
    metrics = [one.evaluate(state.best_model, "train").metrics() for one in (again, as_trained, trained)]
    assert metrics[0] == metrics[1] != metrics[2]
    assert again.first_state().model_spec["mean"] == [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def other_classes(make_dataset, tmp_path_factory):
    return make_dataset(
        tmp_path_factory.mktemp("other"), rows={"train": 40, "validation": 8}, shape=(3, 8, 8), num_classes=5, seed=1
    )


def test_a_replaced_head_is_initialized_and_all_else_is_pretrained(source, other_classes, launchers):
    trained, state = source
    new = training(other_classes, launchers, optimizer={"name": "sgd"}, num_epochs=1, num_workers=2)
    pretrained = pretrained_of(trained, state)
    one = tuned(new, pretrained, replace_head=True, freeze=CONVOLUTIONS)
    first, fresh = one.first_state().model, new.first_state().model
    for name, tensor in first.items():
        expected = fresh if name.startswith("body.15.") else state.best_model
        assert bits(tensor) == bits(expected[name]), name
    assert first["body.15.weight"].shape == (5, 128)
    last = fit(one)
    assert bits(last.model["body.0.weight"]) == bits(state.best_model["body.0.weight"])
    assert bits(last.model["body.15.weight"]) != bits(first["body.15.weight"])
    assert last.model_spec["class_names"] == other_classes.manifest.class_names


@pytest.mark.parametrize(("model_spec", "fine_tuning", "message"), [
    ({"network": "resnet18"}, {}, "models:/pets/3 has network resnet18, and network is small_cnn: set the same"),
    ({"layers": [{"layer": "relu"}]}, {}, "models:/pets/3 has other layers, and network is small_cnn"),
    ({"image": {"channels": 3, "height_px": 9, "width_px": 8}}, {}, "takes images of 3 x 9 x 8 and the DataSet has 3"),
    ({"class_names": ["class 0", "class 2", "class 1"]}, {},
     r"knows 3 classes \(class 0, class 2, class 1\) and the DataSet has 3 classes \(class 0, .*replace_head"),
    ({}, {"replace_head": True, "freeze": ["15.bias"]}, "freeze matches 15.bias of the head, which is replaced"),
])  # fmt: skip
def test_what_must_agree(source, model_spec, fine_tuning, message):
    trained, state = source
    with pytest.raises(UserError, match=message):
        tuned(trained, pretrained_of(trained, state, **model_spec), **fine_tuning).first_state()


def test_a_normalization_that_is_not_the_pretrained_models_is_refused(source):
    trained, state = source
    pretrained = pretrained_of(trained, state)
    config = trained.config.model_dump() | {"normalization": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    with pytest.raises(UserError, match=r"normalization is \[0.1, .* models:/pets/3 was trained with \[0.5, 0.5"):
        pretrained.check(TrainingConfig(**config), trained.dataset.manifest)


def test_a_state_that_does_not_fit_is_refused(source):
    trained, state = source
    lacking = {name: tensor for name, tensor in state.best_model.items() if name != "body.0.weight"}
    pretrained = dataclasses.replace(pretrained_of(trained, state), state=lacking)
    with pytest.raises(UserError, match=r"does not fit network small_cnn: .*body.0.weight"):
        tuned(trained, pretrained).first_state()


def test_a_network_whose_last_layer_is_no_head(source, monkeypatch):
    trained, state = source
    monkeypatch.setattr(
        "shardmean.model.training.trainer.build_model", lambda *_: Classifier(nn.Flatten(), [0.5] * 3, [0.5] * 3)
    )
    with pytest.raises(UserError, match="the network's last linear layer does not give the 3 classes"):
        tuned(trained, pretrained_of(trained, state), replace_head=True).first_state()


def test_normalization_for_each_channel(tiny_data):
    config = TrainingConfig(network="small_cnn", normalization={"mean": [0.5], "std": [0.2]})
    with pytest.raises(UserError, match=r"normalization.mean has 1 values and images have 3 channels"):
        build_model(config, tiny_data.manifest)
