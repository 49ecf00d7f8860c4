"""The model that MLflow stores: image bytes in, label and probabilities out. Nothing in it is a pickle.

A stored model is a folder of `classifier.json` (image settings, class names, network) and `weights.pt` (a state dict
read with `weights_only=True`). The modules that loading needs are stored with it as a package `shardmean_model_HASH`,
so a program needs neither Shardmean nor Spark, and may have a `model.py` of its own. HASH is of the modules' code:
Python keeps one package of a name, and a program may load models with different code.
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

from ..config.image import ImageConfig
from ..config.network import Layers
from ..errors import ImageRejectedError
from ..images.decoder import decode
from ..networks.classifier import Classifier, build_classifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from ..config.base import Settings
    from ..dataset.manifest import Manifest

# Whole packages, and single modules where the rest of the package is not needed.
SHIPPED = (
    "__init__.py", "errors.py", "config/__init__.py", "config/base.py", "config/former_names.py", "config/image.py",
    "config/network.py",
    "images/*.py", "networks/*.py", "serving/*.py",
)  # fmt: skip
BATCH = 256
_LAYERS: TypeAdapter[list[Any]] = TypeAdapter(Layers)


@dataclass(frozen=True)
class ImageModel:
    """A trained classifier that decodes images itself: what `mlflow.pyfunc.load_model` returns."""

    image: ImageConfig
    class_names: list[str]
    classifier: Classifier

    @staticmethod
    def load(folder: Path | str) -> ImageModel:
        """Read a stored model without MLflow: the folder `data/classifier` of a registered version's artifacts.

        Executes no code from it. Raises UserError for a network by a factory whose package is not installed or not in
        SHARDMEAN_FACTORIES.
        """
        description, state = read_parts(Path(folder))
        image = ImageConfig.model_validate(description["image"])
        with torch.random.fork_rng(devices=[]):  # initialization, overwritten below, draws from it
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

    def predict(
        self,
        model_input: Any,
        params: dict[str, Any] | None = None,  # noqa: ARG002 - MLflow passes it
    ) -> pd.DataFrame:
        """Classify image files given as bytes: a list of them, or a DataFrame whose first column holds them.

        Returns a DataFrame with a row per image: `label`, `probability` of that label, and `probabilities`, a dict from
        class name to probability. Raises a ValueError that names the first image that cannot be decoded.
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
    manifest: Manifest, network: str, *, layers: Sequence[Settings], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """What a state dict belongs to, as JSON values: images, classes, network, normalization."""
    return {
        "image": manifest.image.model_dump(),
        "class_names": list(manifest.class_names),
        "network": network,
        "layers": [layer.model_dump() for layer in layers],
        "mean": list(mean),
        "std": list(std),
    }


def save_model(folder: Path, model_spec: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a model's folder: its description as JSON (see `describe`), parameters and buffers as a state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classifier.json").write_text(json.dumps(model_spec, indent=1))
    torch.save(state, folder / "weights.pt")


def read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description and the state dict in a folder that `save_model` wrote; executes no code from it."""
    description = json.loads((folder / "classifier.json").read_text())
    weights = io.BytesIO((folder / "weights.pt").read_bytes())
    return description, torch.load(weights, map_location="cpu", weights_only=True)


def copy_code(folder: Path) -> Path:
    """Copy the modules that loading needs into `folder` as one package, named by their hash, and return its path."""
    modules = {name: file.read_bytes() for name, file in shipped_files().items()}
    digest = hashlib.sha256()
    for name, code in modules.items():
        digest.update(f"{name} {len(code)}\n".encode() + code)
    package = folder / f"shardmean_model_{digest.hexdigest()[:12]}"
    for name, code in modules.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(code)
    return package


def shipped_files() -> dict[str, Path]:
    """The files that loading needs, by their paths within `model`, sorted."""
    package = Path(__file__).parents[1]
    files = sorted(file for pattern in SHIPPED for file in package.glob(pattern))
    return {file.relative_to(package).as_posix(): file for file in files}


def loader_module(package: Path) -> str:
    """The module by which MLflow loads a model, in a package that `copy_code` made."""
    return f"{package.name}.serving.image_model"


_load_pyfunc = ImageModel.load  # MLflow's entry point
