"""What docs/cluster.md tells a team with an Airflow of its own to put into its DAGs folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from .conftest import clean_environment, write_configs

DOCUMENT = Path(__file__).parents[2] / "docs" / "cluster.md"
# The folder is parsed as Airflow's DAG processor does it, which leaves out files that look to hold no DAG.
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
sys.path.append(sys.argv[1])  # as Airflow does
bag = DagBag(dag_folder=sys.argv[1])
print(json.dumps([{id: dag.fileloc for id, dag in bag.dags.items()}, bag.import_errors]))
"""


def test_the_file_for_the_dags_folder_brings_the_dags_of_pipelines_beside_it(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    file = tmp_path / "dags" / "team_pipelines.py"
    file.parent.mkdir()
    file.write_text(found[1])
    write_configs(file.parent)
    (file.parent / "model.py").write_text("NAME = 'pets'\n")
    (file.parent / "pets.py").write_text("from airflow.sdk import DAG\nfrom model import NAME\n\ndag = DAG(NAME)\n")
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(file.parent)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    dags, errors = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    pets = str(file.parent / "pets.py")
    ours = dict.fromkeys(("digits_promote", "digits_train", "digits_vectorize"), str(file))
    assert dags == {**ours, "pets": pets}
