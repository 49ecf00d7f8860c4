"""Settings that are refused when they are read, with a message that says what to set."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shardmean.model.config.training import TrainingConfig


@pytest.mark.parametrize(("settings", "message"), [
    ({"network": "layers"}, "network is layers, but there are none: give the key layers"),
    ({"layers": [{"layer": "relu"}]}, "layers are given, but network is lenet: set network to layers"),
    ({"network": "alexnet"}, "expected lenet, small_cnn, vgg_small, resnet18, resnet50, layers"),
    ({"network": "os:system\n"}, "or the import path of a factory such as my_package.nets:make"),
    ({"network": "a." * 100 + "b:c"}, "or the import path of a factory such as my_package.nets:make"),
    ({"network": "layers", "layers": [{"layer": "relu"}] * 501}, "at most 500 items"),
    ({"fine_tuning": {"replace_head": True}}, "replace_head is true, but there is no start_from"),
    ({"fine_tuning": {"start_from": "models:/pets"}}, "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ({"fine_tuning": {"start_from": "models:/a/b/3"}}, "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ({"fine_tuning": {"start_from": "s3://me:secret@there/x"}}, "must hold no password"),
    ({"normalization": {"mean": [0.5]}}, "mean has 1 values and std 0: give one per channel to both"),
    ({"averaging": {"outer": {"nesterov": True}}}, "nesterov needs momentum over 0: set averaging.outer.momentum"),
    ({"augmentation": {"scale_min": 1.1}}, "scale_min is 1.1 and must be at most scale_max, 1"),
])  # fmt: skip
def test_settings_are_refused_when_they_are_read(settings, message):
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(**settings)
    assert message in str(caught.value)
