"""Networks by the import path of a factory: only as allowed, checked, trained, and stored with a model."""

from __future__ import annotations

import json

import pytest
import torch

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.optimization.replica import build_model
from shardmean.model.serving import image_model
from tests.model.fitting import built, fit, training

FACTORY = """
import torch
from torch import nn

def make(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def wide(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + 1))

def breaks(shape, num_classes):
    raise KeyError("sizes")

def fails_later(shape, num_classes):
    return nn.Linear(1, num_classes)

def function(shape, num_classes):
    return torch.flatten

def with_complex_weights(shape, num_classes):
    body = make(shape, num_classes)
    body.register_parameter("phase", nn.Parameter(torch.zeros(3, dtype=torch.complex64)))
    return body

class Tied(nn.Module):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.once = nn.Conv2d(shape[0], shape[0], 3, padding=1)
        self.again, self.norm = self.once, nn.BatchNorm2d(shape[0])
        head = [nn.Flatten(), nn.LazyLinear(num_classes)]
        self.body = nn.Sequential(self.once, self.norm, nn.ReLU(), self.again, self.norm, *head)

    def forward(self, images):
        return self.body(images)

def tied(shape, num_classes):
    return Tied(shape, num_classes)

class Masked(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images):
        scores = self.body(images)
        return scores.masked_fill(torch.arange(scores.shape[1]) == 0, float("-inf"))

def masked(shape, num_classes):
    return Masked(make(shape, num_classes))
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A package of factories that can be imported; gives a function that allows some of them."""
    (tmp_path / "nets_of_a_test.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("SHARDMEAN_FACTORIES", raising=False)
    return lambda *names: monkeypatch.setenv("SHARDMEAN_FACTORIES", ", ".join(f"nets_of_a_test:{n}" for n in names))


def test_a_factory_that_is_allowed(factories):
    factories("wide", "make")
    model = built("nets_of_a_test:make")
    assert model(torch.zeros(5, 3, 32, 32, dtype=torch.uint8)).shape == (5, 10)
    assert model.training


@pytest.mark.parametrize("allowed", [[], ["wide"]])
def test_a_factory_that_is_not_allowed_is_not_even_imported(factories, tmp_path, allowed):
    (tmp_path / "nets_of_a_test.py").write_text("raise AssertionError('imported')")
    if allowed:
        factories(*allowed)
    said = "it lists nets_of_a_test:wide" if allowed else "it is not set"
    with pytest.raises(UserError, match=rf"not allowed by the environment variable SHARDMEAN_FACTORIES \({said}\)"):
        built("nets_of_a_test:make")


@pytest.mark.parametrize(("name", "message"), [
    ("wide", "expected scores (2, 10) for images (2, 3, 32, 32), got (2, 11)"),
    ("breaks", "the factory failed: KeyError: 'sizes'"),
    ("fails_later", "its module failed on images (2, 3, 32, 32): RuntimeError: "),
    ("function", "expected a torch.nn.Module from the factory, got builtin_function_or_method"),
    ("with_complex_weights", "phase is complex64, and complex numbers are not averaged"),
    ("missing", "module 'nets_of_a_test' has no attribute 'missing'; install its package for the driver"),
])  # fmt: skip
def test_factories_that_are_wrong(factories, name, message):
    factories(name)
    with pytest.raises(UserError) as caught:
        built(f"nets_of_a_test:{name}")
    assert message in str(caught.value)


@pytest.mark.parametrize("averaging", [{}, {"outer": {"momentum": 0.5}}, {"comm_dtype": "bfloat16"}])
def test_a_module_that_is_used_twice_is_trained_and_averaged_once(factories, tiny_data, launchers, averaging):
    factories("tied")
    trained = training(tiny_data, launchers, optimizer={}, num_epochs=1, averaging={"frequency": 2} | averaging)
    config = trained.config.model_copy(update={"network": "nets_of_a_test:tied"})
    state = fit(type(trained)(config, tiny_data, trained.launcher))
    assert torch.equal(state.model["body.once.weight"], state.model["body.again.weight"])
    assert int(state.model["body.norm.num_batches_tracked"]) == 2 * 7, "twice a step, and 7 steps"


def test_a_loss_that_is_not_finite_ends_a_training_though_parameters_are(factories, tiny_data, launchers):
    factories("masked")
    trained = training(tiny_data, launchers, optimizer={}, num_epochs=1)
    config = trained.config.model_copy(update={"network": "nets_of_a_test:masked"})
    saved = []
    with pytest.raises(UserError, match=r"worker 0 diverged: its training loss was not finite after round 0"):
        type(trained)(config, tiny_data, trained.launcher).fit(None, saved.append)
    assert not saved


def test_a_factory_of_no_package_here(monkeypatch):
    monkeypatch.setenv("SHARDMEAN_FACTORIES", "no_such_package.nets:make")
    with pytest.raises(UserError, match=r"No module named 'no_such_package'; install its package"):
        built("no_such_package.nets:make")


@pytest.mark.parametrize("network", ["layers", "nets_of_a_test:make", "resnet18"])
def test_a_stored_model_has_what_its_network_needs(factories, tiny_data, tmp_path, monkeypatch, network):
    factories("make")
    layers = [{"layer": "conv", "channels": 4}, {"layer": "flatten"}] if network == "layers" else []
    config = TrainingConfig(network=network, layers=layers)
    shape = tiny_data.manifest.image.shape
    if network == "resnet18":
        monkeypatch.setattr("shardmean.model.networks.resnet._check_size", lambda shape, fewest: None)
    model = build_model(config, tiny_data.manifest).eval()
    state = dict(model.state_dict())
    manifest = tiny_data.manifest
    model_spec = image_model.describe(manifest, network, layers=config.layers, mean=manifest.mean, std=manifest.std)
    image_model.save_model(tmp_path / "stored", model_spec, state)
    loaded = image_model.ImageModel.load(tmp_path / "stored")
    images = torch.arange(2 * 192, dtype=torch.uint8).reshape(2, *shape)
    assert torch.equal(loaded.classifier(images), model(images))
    assert json.loads((tmp_path / "stored" / "classifier.json").read_text())["network"] == network
    if ":" in network:
        monkeypatch.delenv("SHARDMEAN_FACTORIES")
        with pytest.raises(UserError, match="and where a model made of it is loaded"):
            image_model.ImageModel.load(tmp_path / "stored")
