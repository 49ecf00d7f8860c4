"""The code of docs/python.md runs, in order and in one session, with `shardmean[train,demo]` alone."""

from __future__ import annotations

import json
import re

import pytest

from tests.environments import make_environment
from tests.paths import ROOT
from tests.test_wheel import run

CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
SUMMARY = """
import json
from importlib.util import find_spec
print(json.dumps({
    "num_examples": made.num_examples, "classes": made.class_names, "shape": examples.features_NCHW.shape,
    "metrics": result.metrics, "label": classifier.predict([seven]).label[0], "pixels": pixels_CHW.shape,
    "accuracy": accuracy, "has_airflow": find_spec("airflow") is not None,
}))
"""


@pytest.mark.timeout(700)
def test_the_session_runs(wheel, tmp_path):
    programs = make_environment(tmp_path / "venv", wheel, "train,demo")
    session = run(programs, "python", "-c", "\n".join([*CODE, SUMMARY]), MPLBACKEND="Agg", SHARDMEAN_HOME="home")
    assert session.returncode == 0, session.stderr
    seen = json.loads(session.stdout.splitlines()[-1])
    assert sum(seen["num_examples"].values()) == 1797
    assert seen["classes"] == list("0123456789")
    assert (seen["shape"], seen["pixels"]) == ([16, 1, 28, 28], [1, 28, 28])
    assert seen["metrics"]["accuracy"] > 0.8
    assert seen["label"] == "7"
    assert seen["accuracy"] > 0.8
    assert not seen["has_airflow"]
    for line in ("epoch 3/3", "published"):
        assert line in session.stderr, "progress is shown"
