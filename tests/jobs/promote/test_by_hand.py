"""`shardmean promote`, `rollback` and `models`: what a person sees and does."""

from __future__ import annotations

import mlflow
import pytest

from shardmean.jobs.cli.main import main

from .shelf import NAME, measured


@pytest.fixture
def call(shelf, capfd):
    """Runs a command; gives its exit code and all that it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        code = main([*arguments, "--tracking-uri", mlflow.get_tracking_uri()])
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return call


def test_promote_roll_back_and_look(shelf, call):
    first, _ = shelf.offer(measured(0.8))
    second, _ = shelf.offer(measured(0.9))
    assert call("rollback", NAME, "--why", "sevens")[0] == 0
    assert shelf.alias() == first
    code, text = call("models", NAME)
    assert code == 0
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "%" in line}
    assert "champion" in rows[first]
    assert "80.00%" in rows[first]
    assert "challenger" in rows[second]
    assert "90.00%" in rows[second]
    assert "rolled back" in text
    assert f"held at version {first} by a rollback" in text
    assert call("promote", NAME, second, "--why", "better after all")[0] == 0
    assert (shelf.alias(), shelf.tags(second)["promoted_because"]) == (second, "better after all")
    assert "held at" not in call("models", NAME)[1]


def test_mistakes_end_with_2_and_say_what_there_is(shelf, call):
    shelf.offer(measured(0.8))
    for arguments, message in (
        (("promote", NAME, "7"), f"{NAME} has no version 7: see `shardmean models {NAME}`"),
        (("rollback", NAME), "has no champion before the present one"),
        (("models", "none"), "has no registered model 'none'"),
        (("promote", "none", "1"), "has no registered model 'none'"),
    ):
        code, text = call(*arguments)
        assert code == 2
        assert message in " ".join(text.split())
        assert "Traceback" not in text
    assert shelf.alias() == "1"
