"""Networks' laws: known sizes, scores of the right shape, layers equal to modules by hand, factories as allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from model import packaging
from model.errors import UserError
from model.network_config import ZOO
from model.networks import NETWORKS, Classifier, build_classifier
from model.replica import build_model
from model.training_config import TrainingConfig

from .fitting import bits, fit, training

PLAIN = ("batch_norm", "relu", "gelu", "silu", "tanh", "flatten", "global_avg_pool")


def built(network: str, *, shape=(3, 32, 32), num_classes: int = 10, layers: list[dict[str, Any]] = ()) -> Classifier:
    config = TrainingConfig(network=network, layers=list(layers))
    normal = {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return build_classifier(network, layers=config.layers, shape=shape, num_classes=num_classes, **normal)


@pytest.mark.parametrize(("network", "shape", "num_classes", "num_parameters", "num_tensors"), [
    ("lenet", (1, 28, 28), 10, 67_780, 8),
    # As in torchvision for 1000 classes: 25,557,032 parameters, 320 tensors.
    ("resnet50", (3, 64, 64), 1000, 25_557_032, 320),
    # As torchvision's (11,689,512 for 1000 classes) with a 3 x 3 stem and 10 classes.
    ("resnet18", (3, 32, 32), 10, 11_689_512 - 64 * 3 * (49 - 9) - 513 * 990, 122),
])  # fmt: skip
def test_sizes_are_those_that_are_known(network, shape, num_classes, num_parameters, num_tensors):
    model = built(network, shape=shape, num_classes=num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert len(model.state_dict()) == num_tensors


def test_resnets_parameters_have_torchvisions_names():
    names = built("resnet50", shape=(3, 33, 33)).body.state_dict()
    for name in ("conv1.weight", "layer1.0.conv3.weight", "layer2.0.downsample.1.running_mean", "layer4.2.bn3.bias"):
        assert name in names
    assert names["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert {"fc.weight", "fc.bias"} == {name for name in names if name.startswith("fc.")}


@pytest.mark.parametrize(("network", "smallest"), [
    ("lenet", 18), ("small_cnn", 8), ("vgg_small", 8), ("resnet18", 9), ("resnet50", 33),
])  # fmt: skip
def test_the_smallest_images_of_each_network(network, smallest):
    model = built(network, shape=(1, smallest, smallest), num_classes=3).train()
    one = torch.full((1, 1, smallest, smallest), 7, dtype=torch.uint8)
    model(one).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    too_small = (1, smallest - 1, smallest)
    with pytest.raises(UserError, match=rf"network {network} cannot take images of 1 x {smallest - 1} x {smallest} "):
        built(network, shape=too_small)


def test_the_zoo_has_its_names():
    assert tuple(NETWORKS) == ZOO


DOCS = (Path(__file__).parent.parent.parent / "docs" / "networks.md").read_text()


def test_the_parameters_in_the_docs_are_those_that_are_built():
    for network in ("lenet", "small_cnn", "vgg_small", "resnet18"):
        (row,) = re.findall(rf"^\| `{network}` \| .*\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", DOCS, re.MULTILINE)
        models = [built(network, shape=shape) for shape in ((1, 28, 28), (3, 32, 32), (3, 224, 224))]
        assert list(row) == [f"{sum(p.numel() for p in model.parameters()):,}" for model in models]


def test_the_examples_in_the_docs_are_read():
    examples = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert len(examples) == 3
    configs = [TrainingConfig(**yaml.safe_load(example)) for example in examples]
    assert built("layers", layers=[layer.model_dump() for layer in configs[0].layers]) is not None


LENET: list[dict[str, Any]] = [
    {"layer": "conv", "channels": 20, "kernel_size": 5}, {"layer": "relu"}, {"layer": "max_pool"},
    {"layer": "conv", "channels": 50, "kernel_size": 5, "stride": 2}, {"layer": "relu"}, {"layer": "max_pool"},
    {"layer": "flatten"}, {"layer": "linear", "features": 200}, {"layer": "relu"},
]  # fmt: skip


def test_layers_are_the_modules_by_hand_to_the_bit():
    model = built("layers", shape=(1, 28, 28), layers=LENET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        by_hand = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10),
        )  # fmt: skip
    assert bits(dict(model.body.state_dict())) == bits(dict(by_hand.state_dict()))
    assert repr(model.body) == repr(by_hand)


def test_every_layer_and_option():
    layers = [
        {"layer": "conv", "channels": 8, "padding": 1, "bias": False}, {"layer": "batch_norm"}, {"layer": "silu"},
        {"layer": "conv", "channels": 16, "groups": 8}, {"layer": "gelu"}, {"layer": "avg_pool", "stride": 1},
        {"layer": "max_pool", "kernel_size": 3, "padding": 1}, {"layer": "tanh"}, {"layer": "global_avg_pool"},
        {"layer": "dropout", "probability": 0.2}, {"layer": "linear", "features": 5, "bias": False},
    ]  # fmt: skip
    model = built("layers", shape=(3, 9, 12), layers=layers, num_classes=4)
    assert model(torch.zeros(2, 3, 9, 12, dtype=torch.uint8)).shape == (2, 4)


sizes = st.integers(1, 9)
random_layers = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"layer": st.just("conv"), "channels": st.integers(1, 6), "kernel_size": sizes, "stride": sizes},
            optional={"padding": st.integers(0, 4), "groups": st.integers(1, 3), "bias": st.booleans()},
        ),
        st.fixed_dictionaries({"layer": st.sampled_from(["max_pool", "avg_pool"]), "kernel_size": sizes},
                              optional={"stride": sizes, "padding": st.integers(0, 4)}),
        st.fixed_dictionaries({"layer": st.just("linear"), "features": st.integers(1, 9)}),
        st.fixed_dictionaries({"layer": st.just("dropout")}),
        st.fixed_dictionaries({"layer": st.sampled_from(PLAIN)}),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(layers=random_layers, channels=st.sampled_from([1, 3]), height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_list_of_layers_gives_scores_or_an_error_that_names_the_layer(layers, channels, height, width):
    try:
        model = built("layers", shape=(channels, height, width), layers=layers, num_classes=3)
    except UserError as error:
        refused = str(error)
        model = None
    if model is None:
        assert refused.startswith(("layer ", "the last layer (linear to 3)"))
        return
    model.train()
    scores = model(torch.zeros(1, channels, height, width, dtype=torch.uint8))
    assert scores.shape == (1, 3)


@pytest.mark.parametrize(("layers", "message"), [
    ([{"layer": "linear", "features": 9}], "layer 1 (linear) needs flat values and gets 1 x 28 x 28: put flatten"),
    ([{"layer": "relu"}], "the last layer (linear to 10) needs flat values and gets 1 x 28 x 28: put flatten or"),
    ([{"layer": "flatten"}, {"layer": "max_pool"}], "layer 2 (max_pool) needs channels x height x width and gets 784"),
    ([{"layer": "conv", "channels": 9, "kernel_size": 29}], "layer 1 (conv) cannot take 1 x 28 x 28: Calculated "),
    ([{"layer": "conv", "channels": 9, "groups": 2}], "layer 1 (conv) cannot take 1 x 28 x 28: in_channels must be"),
    ([{"layer": "conv", "channels": 9, "kernel_size": 28}, {"layer": "batch_norm"}], "layer 2 (batch_norm) needs more"),
    # 17 GB of parameters: refused before anything is made.
    ([{"layer": "flatten"}, *[{"layer": "linear", "features": 65_536}] * 3], "brings the network to 4,346,478,592 par"),
    ([{"layer": "conv", "channels": 65_536, "kernel_size": 1, "padding": 512}], "gives 65536 x 1052 x 1052 values"),
])  # fmt: skip
def test_layers_that_do_not_fit(layers, message):
    with pytest.raises(UserError) as caught:
        built("layers", shape=(1, 28, 28), layers=layers)
    assert message in str(caught.value)


@pytest.mark.parametrize(("settings", "message"), [
    ({"network": "layers"}, "network is layers, but there are none: give the key layers"),
    ({"layers": [{"layer": "relu"}]}, "layers are given, but network is lenet: set network to layers"),
    ({"network": "alexnet"}, "expected lenet, small_cnn, vgg_small, resnet18, resnet50, layers"),
    ({"network": "os:system\n"}, "or the import path of a factory such as my_package.nets:make"),
    ({"network": "a." * 100 + "b:c"}, "or the import path of a factory such as my_package.nets:make"),
    ({"network": "layers", "layers": [{"layer": "relu"}] * 501}, "at most 500 items"),
])  # fmt: skip
def test_networks_that_are_refused_when_the_config_is_read(settings, message):
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(**settings)
    assert message in str(caught.value)


def test_two_workers_train_a_network_of_layers(tiny_data, transports):
    layers = [{"layer": "conv", "channels": 4}, {"layer": "batch_norm"}, {"layer": "relu"}, {"layer": "flatten"}]
    trained = training(tiny_data, transports, optimizer={"name": "sgd"}, num_workers=2, num_epochs=1)
    config = TrainingConfig(**trained.config.model_dump() | {"network": "layers", "layers": layers})
    state = fit(type(trained)(config, trained.dataset, trained.transport))
    assert state.model["body.4.weight"].shape == (3, 4 * 36)


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


@pytest.mark.parametrize("averaging", [{}, {"outer": {"momentum": 0.5}}, {"exchange": "bfloat16"}])
def test_a_module_that_is_used_twice_is_trained_and_averaged_once(factories, tiny_data, transports, averaging):
    factories("tied")
    trained = training(tiny_data, transports, optimizer={}, num_epochs=1, averaging={"frequency": 2} | averaging)
    config = trained.config.model_copy(update={"network": "nets_of_a_test:tied"})
    state = fit(type(trained)(config, tiny_data, trained.transport))
    assert torch.equal(state.model["body.once.weight"], state.model["body.again.weight"])
    assert int(state.model["body.norm.num_batches_tracked"]) == 2 * 7, "twice a step, and 7 steps"


def test_a_loss_that_is_not_finite_ends_a_training_though_parameters_are(factories, tiny_data, transports):
    factories("masked")
    trained = training(tiny_data, transports, optimizer={}, num_epochs=1)
    config = trained.config.model_copy(update={"network": "nets_of_a_test:masked"})
    saved = []
    with pytest.raises(UserError, match=r"worker 0 diverged: its training loss was not finite after round 0"):
        type(trained)(config, tiny_data, trained.transport).fit(None, saved.append)
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
        monkeypatch.setattr("model.resnet._check_size", lambda shape, fewest: None)
    model = build_model(config, tiny_data.manifest).eval()
    state = dict(model.state_dict())
    packaging.save_model(tmp_path / "stored", tiny_data.manifest, network, state, layers=config.layers)
    loaded = packaging.load_model(tmp_path / "stored")
    images = torch.arange(2 * 192, dtype=torch.uint8).reshape(2, *shape)
    assert torch.equal(loaded.classifier(images), model(images))
    assert json.loads((tmp_path / "stored" / "classifier.json").read_text())["network"] == network
    if ":" in network:
        monkeypatch.delenv("SHARDMEAN_FACTORIES")
        with pytest.raises(UserError, match="and where a model made of it is loaded"):
            packaging.load_model(tmp_path / "stored")
