"""Makes every Python process that finds this folder on PYTHONPATH note when it reaches the points of first_step.

Python imports a module of this name when it starts. Functions are wrapped when their module is imported, and steps are
seen by torch's own hook, so the code that is measured knows nothing of it. A line of JSON per event goes to the file
that SHARDMEAN_EVENTS names: the point, and the seconds since 1970 at which it began and ended.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

EVENTS = os.environ.get("SHARDMEAN_EVENTS", "")
POINTS = {
    "shardmean.jobs.train.job": ["train"],
    "shardmean.jobs.tracking.run": ["Tracker.__init__"],
    "pyspark.sql.session": ["SparkSession.Builder.getOrCreate"],
    "shardmean.model.training.trainer": ["Trainer.next_state"],
    "shardmean.model.training.worker_runtime": ["attempt"],
    "shardmean.model.distributed.rendezvous": ["WorkerGroup.__init__"],
    "torch.optim.optimizer": [],
}
_steps: list[float] = []


def note(point: str, begin: float, end: float) -> None:
    """Add one event; a short line is appended whole."""
    with open(EVENTS, "a") as file:  # noqa: PTH123 - imports as little as it can
        file.write(json.dumps({"point": point, "begin": begin, "end": end, "process": os.getpid()}) + "\n")


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of POINTS as Python does, and wraps what is named there once they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The usual spec with a loader that wraps afterwards; None for all other modules."""
        if name not in POINTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


class Loader(importlib.abc.Loader):
    """Loads a module as another loader does and then wraps what is named in it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the other loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the other loader, and wrap."""
        self._loader.exec_module(module)
        _wrap_all(module)


def _wrap_all(module: ModuleType) -> None:
    for point in POINTS[module.__name__]:
        *owners, name = point.split(".")
        owner: Any = module
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, _noted(point, getattr(owner, name)))
    if module.__name__ == "torch.optim.optimizer":
        module.register_optimizer_step_post_hook(lambda *_: _steps.append(time.time()))


def _noted(point: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        _steps.clear()
        begin = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            note(point, begin, time.time())
            if point == "attempt" and len(_steps) > 1:
                note("first step", begin, _steps[0])
                note("second step", _steps[0], _steps[1])

    return noted


if EVENTS:
    note("process", time.time(), time.time())
    sys.meta_path.insert(0, Finder())
