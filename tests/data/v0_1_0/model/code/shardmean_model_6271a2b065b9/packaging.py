"""The model that MLflow stores: image bytes in, label and probabilities out. Nothing in it is a pickle.

A stored model is a folder of `classifier.json` (image settings, class names, network) and `weights.pt` (a state dict
read with `weights_only=True`). The few modules that loading needs travel with it as a package `shardmean_model_HASH`,
so a program needs neither Shardmean nor Spark to use it, and its own `model.py` is in nobody's way. The hash is of the
modules' code: Python keeps the first package of a name, and a program may load models of several versions of it.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter

from .config import ImageConfig
from .errors import ImageRejectedError
from .images import decode
from .network_config import Layers
from .networks import Classifier, build_classifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from .config import Settings
    from .manifest import Manifest

SHIPPED_MODULES = (
    "errors", "config", "time_limit", "quiet", "colours", "jpeg", "resizing", "images",
    "network_config", "layers", "resnet", "factory", "networks", "packaging",
)  # fmt: skip
BATCH = 256
_LAYERS: TypeAdapter[list[Any]] = TypeAdapter(Layers)


@dataclass(frozen=True)
class ImageModel:
    """A trained classifier with its decoding: what `mlflow.pyfunc.load_model` gives a program."""

    image: ImageConfig
    class_names: list[str]
    classifier: Classifier

    def predict(
        self,
        model_input: Any,
        params: dict[str, Any] | None = None,  # noqa: ARG002 - MLflow passes it
    ) -> pd.DataFrame:
        """Classify image files given as bytes: a list of them, or a DataFrame whose first column holds them.

        Returns a DataFrame of a row per image: label, probability of that label, and `probabilities`, a dict from
        class name to probability. Raises ValueError that names the first image that can't be decoded.
        """
        import pandas as pd

        files = list(model_input.iloc[:, 0]) if isinstance(model_input, pd.DataFrame) else list(model_input)
        rows = [row for first in range(0, len(files), BATCH) for row in self._rows(files[first : first + BATCH], first)]
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities"])

    def _rows(self, files: list[bytes], first: int) -> Iterable[tuple[str, float, dict[str, float]]]:
        images_BCHW = torch.from_numpy(np.stack([self._pixels(data, first + i) for i, data in enumerate(files)]))
        with torch.inference_mode():
            probabilities_BK = self.classifier(images_BCHW).softmax(dim=1).double()
        for row in probabilities_BK:
            best = int(row.argmax())
            yield self.class_names[best], float(row[best]), dict(zip(self.class_names, row.tolist(), strict=True))

    def _pixels(self, data: object, index: int) -> Any:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"image {index}: expected the bytes of an image file, got {type(data).__name__}")
        try:
            return decode(bytes(data), self.image)
        except ImageRejectedError as error:
            raise ValueError(f"image {index}: {error}") from error


def describe(
    manifest: Manifest,
    network: str,
    *,
    layers: Sequence[Settings] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> dict[str, Any]:
    """What a state dict is of: images, classes, network and normalisation (empty: the DataSet's), as JSON values."""
    return {
        "image": manifest.image.model_dump(),
        "class_names": list(manifest.class_names),
        "network": network,
        "layers": [layer.model_dump() for layer in layers],
        "mean": list(mean or manifest.mean),
        "std": list(std or manifest.std),
    }


def save_model(
    folder: Path, manifest: Manifest, network: str, state: dict[str, Any], **described: Sequence[Any]
) -> None:
    """Write a model's folder: what it is of as JSON (see `describe`), parameters and buffers as a state dict."""
    description = describe(manifest, network, **described)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classifier.json").write_text(json.dumps(description, indent=1))
    torch.save(state, folder / "weights.pt")


def read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description and the state dict in a folder that `save_model` wrote; executes nothing from it."""
    description = json.loads((folder / "classifier.json").read_text())
    weights = io.BytesIO((folder / "weights.pt").read_bytes())
    return description, torch.load(weights, map_location="cpu", weights_only=True)


def load_model(folder: Path) -> ImageModel:
    """Read a folder that `save_model` wrote; executes nothing from it.

    A network by a factory needs its package here, and SHARDMEAN_FACTORIES to allow it: else UserError says so.
    """
    description, state = read_parts(folder)
    image = ImageConfig.model_validate(description["image"])
    with torch.random.fork_rng(devices=[]):  # the first parameters, overwritten below, are drawn from it
        classifier = build_classifier(
            description["network"],
            layers=_LAYERS.validate_python(description.get("layers", [])),
            shape=image.shape,
            num_classes=len(description["class_names"]),
            mean=description["mean"],
            std=description["std"],
        )
    classifier.load_state_dict(state)
    return ImageModel(image, description["class_names"], classifier.eval())


def copy_code(folder: Path) -> Path:
    """Copy the modules that loading needs into `folder`, as one package named by their hash, and return its path."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    modules = {name: (here / f"{name}.py").read_bytes() for name in ("__init__", *SHIPPED_MODULES)}
    for name, code in modules.items():
        digest.update(f"{name} {len(code)}\n".encode() + code)
    package = folder / f"shardmean_model_{digest.hexdigest()[:12]}"
    package.mkdir(parents=True)
    for name, code in modules.items():
        (package / f"{name}.py").write_bytes(code)
    return package


def loader_module(package: Path) -> str:
    """The module in a package that `copy_code` made by which MLflow loads a model."""
    return f"{package.name}.packaging"


def _load_pyfunc(path: str) -> ImageModel:
    """MLflow's entry point."""
    return load_model(Path(path))
