"""The zoo's laws: known sizes, the smallest images, what the docs say, and names that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from shardmean.model.config.network import ZOO
from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.networks.classifier import NETWORKS
from tests.model.fitting import built


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


DOCS = (Path(__file__).parents[3] / "docs" / "networks.md").read_text()


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
