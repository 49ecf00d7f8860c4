"""Freezes the parameters of a network whose names match patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..networks.classifier import Classifier

_NUM_NAMES = 8


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
