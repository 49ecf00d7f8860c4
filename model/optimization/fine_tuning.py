"""Fine-tuning: the state of a pretrained model, checked against the new training, and parameters that are frozen."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..config.fine_tuning import NormalizationConfig
from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..config.training import TrainingConfig
    from ..dataset.manifest import Manifest
    from ..networks.classifier import Classifier

Config = TypeVar("Config", bound="TrainingConfig")
_NUM_NAMES = 8


@dataclass(frozen=True)
class PretrainedModel:
    """A trained model: its URI, its description (`image_model.describe`), and its state dict."""

    uri: str
    model_spec: dict[str, Any]
    state: dict[str, Tensor]

    def check(self, config: TrainingConfig, manifest: Manifest) -> None:
        """Raise UserError unless network, images, classes and normalization are those of the new training."""
        spec, layers = self.model_spec, [layer.model_dump() for layer in config.layers]
        if (spec["network"], spec["layers"]) != (config.network, layers):
            differs = f"network {spec['network']}" if spec["network"] != config.network else "other layers"
            raise UserError(f"{self.uri} has {differs}, and network is {config.network}: set the same as it has")
        theirs, ours = _size(spec["image"]), _size(manifest.image.model_dump())
        if theirs != ours:
            raise UserError(f"{self.uri} takes images of {theirs} and the DataSet has {ours}: vectorize to that size")
        names = spec["class_names"]
        if names != manifest.class_names and not config.fine_tuning.replace_head:
            raise UserError(
                f"{self.uri} knows {_classes(names)} and the DataSet has {_classes(manifest.class_names)}: set "
                "fine_tuning.replace_head=true to learn other classes"
            )
        given = config.normalization
        if given.mean and (given.mean, given.std) != (spec["mean"], spec["std"]):
            raise UserError(
                f"normalization is {given.mean}, {given.std} and {self.uri} was trained with "
                f"{spec['mean']}, {spec['std']}: leave normalization out"
            )


def normalized_as(config: Config, model_spec: dict[str, Any]) -> Config:
    """`config` with the normalization of a pretrained model, which its first layers were trained with."""
    normalization = NormalizationConfig(mean=model_spec["mean"], std=model_spec["std"])
    return config.model_copy(update={"normalization": normalization})


def load_pretrained(model: Classifier, pretrained: PretrainedModel, config: TrainingConfig, manifest: Manifest) -> None:
    """Load the state of `pretrained` into `model` (built for `config` and `manifest`), except for a replaced head.

    Raises UserError when they do not fit.
    """
    pretrained.check(config, manifest)
    state = dict(pretrained.state)
    if config.fine_tuning.replace_head:
        own = model.state_dict()
        for name in _head(model, len(manifest.class_names)):
            state[name] = own[name]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{pretrained.uri} does not fit network {config.network}: {reason[:500]}") from error


def freeze(model: Classifier, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names in the network match one of `patterns` (fnmatch: layer1.*, *.bias).

    They get no gradient, so neither optimizer nor averaging changes them. A module whose own parameters are all frozen
    also keeps its buffers (BatchNorm's statistics); so does a module without parameters if its buffers' names match.
    Raises UserError for a pattern that matches nothing, and if nothing is left to train.
    """
    names = dict(model.body.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"fine_tuning.freeze: no parameter's name matches {pattern!r}; names here are {_listed(list(names))}"
            )
    for name, parameter in names.items():
        if _matches(name, patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise UserError("fine_tuning.freeze matches every parameter, so there is nothing to train: freeze fewer")
    for prefix, module in model.body.named_modules():
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        buffers = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)]
        stays = not any(own) if own else all(_matches(name, patterns) for name in buffers)
        if buffers and stays:
            model.frozen.append(module)
    model.train(model.training)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: list[str]) -> str:
    if len(names) <= _NUM_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: _NUM_NAMES - 2])}, ..., {', '.join(names[-2:])}"


def _head(model: Classifier, num_classes: int) -> list[str]:
    """The names of the last linear layer's parameters in the state dict."""
    linear = [(name, module) for name, module in model.body.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != num_classes:
        raise UserError(
            f"fine_tuning.replace_head: the network's last linear layer does not give the {num_classes} classes; "
            "make it the last module of the factory's network"
        )
    name, head = linear[-1]
    frozen = [f"{name}.{own}" for own, parameter in head.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise UserError(f"fine_tuning.freeze matches {frozen[0]} of the head, which is replaced: freeze less")
    return [f"body.{name}.{own}" for own, _ in head.named_parameters()]


def _size(image: dict[str, Any]) -> str:
    return f"{image['channels']} x {image['height_px']} x {image['width_px']}"


def _classes(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 5 else ''})"
