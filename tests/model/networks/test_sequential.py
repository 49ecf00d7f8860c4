"""Networks of layers: equal to modules by hand, of any list scores or an error that names the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from tests.model.fitting import bits, built, fit, training

PLAIN = ("batch_norm", "relu", "gelu", "silu", "tanh", "flatten", "global_avg_pool")
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


def test_two_workers_train_a_network_of_layers(tiny_data, launchers):
    layers = [{"layer": "conv", "channels": 4}, {"layer": "batch_norm"}, {"layer": "relu"}, {"layer": "flatten"}]
    trained = training(tiny_data, launchers, optimizer={"name": "sgd"}, num_workers=2, num_epochs=1)
    config = TrainingConfig(**trained.config.model_dump() | {"network": "layers", "layers": layers})
    state = fit(type(trained)(config, trained.dataset, trained.launcher))
    assert state.model["body.4.weight"].shape == (3, 4 * 36)
