"""A stored model's laws: it answers as the classifier did, names the image it can't read, and needs no Shardmean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from shardmean.model.images.decoder import decode, encode_png
from shardmean.model.networks.classifier import Classifier, build_classifier
from shardmean.model.serving import image_model

if TYPE_CHECKING:
    from pathlib import Path

CLASS_NAMES = ["cat", "d\u00f6g", "x/y"]
LOAD = """
import json, sys
from pathlib import Path
{before}
model = {load}
files = [Path(name).read_bytes() for name in sys.argv[2:]]
answer = model.predict(files)
taken = sorted(name for name in sys.modules if name.split(".")[0] in ("model", "shardmean"))
print(json.dumps({{"probabilities": list(answer["probabilities"]), "modules": taken}}))
"""


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), rows={"train": 1}, shape=(3, 8, 8), class_names=CLASS_NAMES)


@pytest.fixture(scope="module")
def classifier(dataset) -> Classifier:
    """A small_cnn whose BatchNorm has seen something, so that training mode would answer otherwise."""
    m = dataset.manifest
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        classifier = build_classifier("small_cnn", shape=m.image.shape, num_classes=3, mean=m.mean, std=m.std)
        classifier(torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8))
    return classifier.eval()


@pytest.fixture(scope="module")
def folder(dataset, classifier, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "classifier"
    m = dataset.manifest
    model_spec = image_model.describe(m, "small_cnn", layers=[], mean=m.mean, std=m.std)
    image_model.save_model(folder, model_spec, dict(classifier.state_dict()))
    return folder


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    generator = np.random.default_rng(0)
    return [encode_png(generator.integers(0, 256, (3, 8, 8), dtype=np.uint8)) for _ in range(5)]


@pytest.fixture(scope="module")
def expected(classifier, dataset, files) -> np.ndarray:
    images = torch.from_numpy(np.stack([decode(data, dataset.manifest.image) for data in files]))
    with torch.inference_mode():
        return classifier(images).softmax(dim=1).numpy()


def probabilities_of(answer: pd.DataFrame) -> np.ndarray:
    return np.array([[row[name] for name in CLASS_NAMES] for row in answer["probabilities"]])


def test_a_loaded_model_answers_as_the_classifier(folder, files, expected):
    answer = image_model.ImageModel.load(folder).predict(files)
    np.testing.assert_allclose(probabilities_of(answer), expected, rtol=1e-6)
    assert answer["label"].tolist() == [CLASS_NAMES[best] for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(answer["probability"], expected.max(axis=1), rtol=1e-6)


def test_lists_and_frames_give_the_same(folder, files, expected):
    model = image_model.ImageModel.load(folder)
    frame = pd.DataFrame({"image": files, "other": range(len(files))})
    for given in (frame, tuple(files), [bytearray(data) for data in files], pd.Series(files)):
        np.testing.assert_allclose(probabilities_of(model.predict(given)), expected, rtol=1e-6)


@pytest.mark.parametrize("given", [[], pd.DataFrame({"image": []})])
def test_no_images_give_no_rows(folder, given):
    answer = image_model.ImageModel.load(folder).predict(given)
    assert list(answer.columns) == ["label", "probability", "probabilities"]
    assert len(answer) == 0


def test_more_images_than_a_batch_keep_their_order(folder, files, expected, monkeypatch):
    monkeypatch.setattr(image_model, "BATCH", 2)
    answer = image_model.ImageModel.load(folder).predict(files)
    np.testing.assert_allclose(probabilities_of(answer), expected, rtol=1e-5)


@pytest.mark.parametrize(("bad", "message"), [
    (b"no image", "image 3: unreadable: "), (b"", "image 3: empty: the file has 0 bytes"),
    ("cat.png", "image 3: expected the bytes of an image file, got str"),
    (None, "image 3: expected the bytes of an image file, got NoneType"),
])  # fmt: skip
@pytest.mark.parametrize("batch", [256, 2])
def test_an_error_names_the_images_index(folder, files, monkeypatch, bad, message, batch):
    monkeypatch.setattr(image_model, "BATCH", batch)
    with pytest.raises(ValueError, match=f"^{message}"):
        image_model.ImageModel.load(folder).predict([*files[:3], bad, *files[3:]])


def test_loading_leaves_the_programs_random_numbers_alone(folder):
    before = torch.get_rng_state()
    image_model.ImageModel.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_stored_is_json_and_a_state_dict(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["classifier.json", "weights.pt"]
    assert json.loads((folder / "classifier.json").read_text())["class_names"] == CLASS_NAMES
    assert "body.0.weight" in torch.load(folder / "weights.pt", weights_only=True)


def run_elsewhere(script: str, where: Path, path: list[Path], *arguments: object) -> Any:
    """Run a program in another folder, with `path` alone before the installed packages."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(where), "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def elsewhere(tmp_path, files) -> tuple[Path, list[Path]]:
    """A folder with image files and a program's own module named `model`, which is none of ours."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.py").write_text("MINE = True\n")
    paths = [tmp_path / f"{index}.png" for index in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return tmp_path / "own", paths


def check_answer(answer: dict[str, Any], expected: np.ndarray) -> None:
    found = [[row[name] for name in CLASS_NAMES] for row in answer["probabilities"]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_copied_package_loads_without_shardmean(folder, expected, elsewhere, tmp_path):
    code = tmp_path / "code"
    package = image_model.copy_code(code)
    assert re.fullmatch(r"shardmean_model_[0-9a-f]{12}", package.name)
    # An installed Shardmean must not help: importing it is made to fail.
    script = LOAD.format(
        before="sys.modules |= dict.fromkeys(['shardmean', 'pyspark', 'mlflow', 'pyarrow'])\n"
        f"from {image_model.loader_module(package)} import ImageModel",
        load="ImageModel.load(Path(sys.argv[1]))",
    )
    answer = run_elsewhere(script, elsewhere[0], [code], folder, *elsewhere[1])
    check_answer(answer, expected)
    assert not [name for name in answer["modules"] if "." in name]


@pytest.fixture
def log_model(tmp_path):
    """A function that logs a model's folder to MLflow with a package of code, and gives its URI; and the store's."""
    store, before = f"sqlite:///{tmp_path}/mlflow.db", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    experiment = mlflow.create_experiment("packaging", artifact_location=str(tmp_path / "artifacts"))

    def log(folder: Path, package: Path) -> str:
        with mlflow.start_run(experiment_id=experiment):
            logged = mlflow.pyfunc.log_model(
                name="model", loader_module=image_model.loader_module(package), data_path=str(folder),
                code_paths=[str(package)], pip_requirements=[],
            )  # fmt: skip
        return logged.model_uri

    yield log, store
    mlflow.set_tracking_uri(before)


def test_mlflow_loads_it_beside_a_module_named_model(folder, expected, elsewhere, tmp_path, log_model):
    log, store = log_model
    uri = log(folder, image_model.copy_code(tmp_path / "code"))
    script = LOAD.format(
        before=f"import model, mlflow\nassert model.MINE\nmlflow.set_tracking_uri({store!r})",
        load="mlflow.pyfunc.load_model(sys.argv[1]); import model as own; assert own.MINE",
    )
    answer = run_elsewhere(script, elsewhere[0], [elsewhere[0]], uri, *elsewhere[1])
    check_answer(answer, expected)
    assert answer["modules"] == ["model"]


def test_models_of_two_versions_in_one_program_run_their_own_code(folder, elsewhere, tmp_path, log_model, monkeypatch):
    """The older one's code, made up here, names the least probable class."""
    log, store = log_model
    packages = [image_model.copy_code(tmp_path / "code")]
    source = shutil.copytree(packages[0], tmp_path / "older") / "serving" / "image_model.py"
    assert "row.argmax()" in source.read_text()
    source.write_text(source.read_text().replace("row.argmax()", "row.argmin()"))
    monkeypatch.setattr(image_model, "__file__", str(source))
    packages.append(image_model.copy_code(tmp_path / "code"))
    assert packages[0].name != packages[1].name
    uris = [log(folder, package) for package in packages]
    script = (
        "import json, mlflow, sys; from pathlib import Path\n"
        f"mlflow.set_tracking_uri({store!r})\n"
        "models = [mlflow.pyfunc.load_model(uri) for uri in sys.argv[1:3]]\n"
        "files = [Path(name).read_bytes() for name in sys.argv[3:]]\n"
        "print(json.dumps([[[r.label, r.probabilities] for r in m.predict(files).itertuples()] for m in models]))"
    )
    newer, older = run_elsewhere(script, elsewhere[0], [elsewhere[0]], *uris, *elsewhere[1])
    assert [label for label, _ in newer] == [max(row, key=row.get) for _, row in newer]
    assert [label for label, _ in older] == [min(row, key=row.get) for _, row in older]


def test_the_same_code_has_the_same_name_each_time(tmp_path):
    assert image_model.copy_code(tmp_path / "one").name == image_model.copy_code(tmp_path / "two").name
