"""Which version is champion: by the gate, by hand, after a rollback, where none stands, and when two finish at once."""

from __future__ import annotations

import contextlib
import threading

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from shardmean.jobs.promote.promotion import HOLD, PASSED, REPLACED, ROLLED_BACK
from shardmean.model.errors import UserError

from .shelf import NAME, OTHER_ROWS, ROWS, measured


def test_the_first_model_becomes_champion_a_better_one_replaces_it_and_a_worse_one_does_not(shelf):
    first, decision = shelf.offer(measured(0.9))
    assert (decision.champion, decision.criteria, decision.reason) == (None, [], "no champion stands")
    assert (shelf.alias(), shelf.alias("previous_champion")) == (first, None)
    worse, decision = shelf.offer(measured(0.89))
    assert not decision.has_passed
    assert "accuracy 0.89, the champion's 0.9 on the same rows; better by -0.01, more than 0" in decision.reason
    equal, _ = shelf.offer(measured(0.9))
    assert shelf.alias() == first
    better, _ = shelf.offer(measured(0.91))
    assert (shelf.alias(), shelf.alias("previous_champion"), shelf.alias("challenger")) == (better, first, better)
    assert (worse, equal, better) == ("2", "3", "4")
    tags = shelf.tags(better)
    assert (tags["promoted_by"], tags[REPLACED], tags[PASSED]) == ("the gate", first, ROWS)
    assert "better by 0.01" in tags["promoted_because"]
    assert shelf.asked == [], "all were measured on these rows"


def test_the_champion_against_itself_has_passed_already(shelf):
    first, _ = shelf.offer(measured(0.9))
    decision = shelf.promoter().decide(first, measured(0.9), shelf.unmeasured)
    assert (decision.champion, decision.has_passed) == (first, True)


def test_the_settings_of_the_gate_hold(shelf):
    first, _ = shelf.offer(measured(0.9))
    _, decision = shelf.offer(measured(0.91), min_improvement=0.02)
    assert (decision.has_passed, shelf.alias()) == (False, first)
    _, decision = shelf.offer(measured(0.95), min_metrics={"accuracy": 0.96})
    assert (decision.has_passed, shelf.alias()) == (False, first)


def test_a_champion_of_other_rows_is_measured_once(shelf):
    first, _ = shelf.offer(measured(0.9, OTHER_ROWS))
    calls = []

    def measure(version):
        calls.append(str(version.version))
        return measured(0.6)

    worse, _ = shelf.offer(measured(0.5), measure)
    better, _ = shelf.offer(measured(0.7), measure)
    assert (worse, shelf.alias(), calls) == ("2", better, [first])
    assert shelf.recorded(first).metrics == {"accuracy": 0.6}
    assert shelf.tags(first)["dataset_digest"] == "d" * 32


def test_a_champion_that_cannot_be_compared_stays_and_the_message_says_how_to_replace_it(shelf):
    first, _ = shelf.offer(measured(0.2, OTHER_ROWS))
    second, decision = shelf.offer(measured(0.9))
    assert (shelf.alias(), shelf.asked) == (first, [first])
    assert f"champion 1 cannot be compared; replace it by: shardmean promote {NAME} {second}" in decision.reason


def test_predictions_are_asked_for_where_the_gate_looks_at_rows(shelf):
    theirs = [True] * 50 + [False] * 50
    first, _ = shelf.offer(measured(0.5))
    calls = []

    def measure(version):
        calls.append(str(version.version))
        return measured(0.5, right=theirs)

    shelf.offer(measured(0.52, right=[True] * 52 + [False] * 48), measure, significance="mcnemar")
    assert shelf.alias() == first
    clear, _ = shelf.offer(measured(0.7, right=[True] * 70 + [False] * 30), measure, significance="mcnemar")
    assert (shelf.alias(), calls) == (clear, [first])
    kept = shelf.recorded(clear).predictions
    assert np.array_equal(kept.predicted_N == kept.labels_N, [True] * 70 + [False] * 30)


def test_a_version_of_0_1_0_with_its_accuracy_alone_is_compared(shelf):
    version = shelf.add(None)
    for key, value in {"dataset_digest": "d" * 32, "evaluated_on": ROWS, "accuracy": "0.8"}.items():
        shelf.client.set_model_version_tag(NAME, version, key, value)
    shelf.client.set_registered_model_alias(NAME, "champion", version)
    shelf.offer(measured(0.79))
    assert shelf.alias() == version
    better, _ = shelf.offer(measured(0.81))
    assert (shelf.alias(), shelf.asked) == (better, [])


def test_a_rollback_gives_the_former_champion_back_and_the_same_figures_do_not_undo_it(shelf):
    first, _ = shelf.offer(measured(0.8, loss=0.5))
    second, _ = shelf.offer(measured(0.9, loss=0.4))
    assert shelf.promoter().rollback(by="ann", why="it mistakes sevens") == first
    assert (shelf.alias(), shelf.alias("previous_champion"), shelf.promoter().hold()) == (first, None, first)
    assert "by ann: it mistakes sevens" in shelf.tags(second)[ROLLED_BACK]
    _, decision = shelf.offer(measured(0.9, loss=0.4))
    assert shelf.alias() == first
    assert "as good as version 2, which was rolled back: " in decision.reason
    again = shelf.promoter().decide(second, measured(0.9, loss=0.4), shelf.unmeasured)
    assert not again.has_passed, "nor does the version itself"
    worse, _ = shelf.offer(measured(0.79, loss=0.6))
    assert (shelf.alias(), shelf.promoter().hold()) == (first, first)
    better, _ = shelf.offer(measured(0.9, loss=0.39))
    assert (worse, shelf.alias(), shelf.promoter().hold()) == ("4", better, None), "a better one lifts the hold"


def test_rollbacks_go_back_one_champion_at_a_time(shelf):
    first, second, third = (shelf.offer(measured(accuracy))[0] for accuracy in (0.7, 0.8, 0.9))
    promoter = shelf.promoter()
    assert promoter.rollback(by="ann", why="") == second
    assert shelf.alias("previous_champion") == first
    assert promoter.rollback(by="ann", why="") == first
    assert (shelf.alias(), promoter.hold(), third) == (first, first, "3")
    with pytest.raises(UserError, match="no champion before the present one: choose a version by `shardmean models"):
        promoter.rollback(by="ann", why="")


def test_a_promotion_that_was_cut_off_is_repeated_and_is_no_way_back(shelf, monkeypatch):
    first, _ = shelf.offer(measured(0.8))
    second, set_alias = shelf.add(measured(0.9)), mlflow.MlflowClient.set_registered_model_alias

    def cut_off(client, name, alias, version):
        if alias == "champion":
            raise KeyboardInterrupt
        set_alias(client, name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", cut_off)
        with pytest.raises(KeyboardInterrupt):
            shelf.promoter().promote(second, by="bob", why="")
    with pytest.raises(UserError, match="no champion before the present one"):
        shelf.promoter().rollback(by="ann", why="")
    shelf.promoter().promote(second, by="bob", why="")
    assert (shelf.alias(), shelf.alias("previous_champion")) == (second, first)


def test_a_person_promotes_what_was_rolled_back_and_ends_the_hold(shelf):
    shelf.offer(measured(0.8))
    second, _ = shelf.offer(measured(0.9))
    promoter = shelf.promoter()
    promoter.rollback(by="ann", why="")
    promoter.promote(second, by="bob", why="it was the data")
    assert (shelf.alias(), promoter.hold()) == (second, None)
    assert HOLD not in shelf.client.get_registered_model(NAME).tags
    tags = shelf.tags(second)
    assert (tags["promoted_by"], tags["promoted_because"], ROLLED_BACK in tags) == ("bob", "it was the data", False)
    with pytest.raises(UserError, match=f"{NAME} has no version 9: see `shardmean models {NAME}`"):
        promoter.promote("9", by="bob", why="")


@pytest.mark.parametrize("keeps_alias", [False, True])
def test_where_no_champion_stands_the_best_of_the_same_rows_does(shelf, keeps_alias, monkeypatch, caplog):
    best, _ = shelf.offer(measured(0.95))
    good, _ = shelf.offer(measured(0.8113), min_improvement=1)
    shelf.offer(measured(0.99, OTHER_ROWS), min_improvement=1)
    before = shelf.client.get_registered_model(NAME)
    shelf.client.delete_model_version(NAME, best)
    with monkeypatch.context() as patch:
        if keeps_alias:  # as in a store that leaves it when the version is deleted
            patch.setattr(mlflow.MlflowClient, "get_registered_model", lambda *_: before)
        newest, decision = shelf.offer(measured(0.3019))
        assert f"version {best} of {NAME} is champion and was deleted" in caplog.text or not keeps_alias
    assert (shelf.alias(), decision.champion, decision.has_passed) == (good, good, False)
    assert "of all versions measured on the same rows it is the best" in shelf.tags(good)["promoted_because"]
    assert newest == "4"


def test_a_version_that_nobody_approved_becomes_champion_by_no_repair(shelf):
    waiting = measured(0.9)
    older, newest = shelf.add(waiting), shelf.add(measured(0.8))
    strict = shelf.promoter(approval="required")
    for version, figures in ((older, waiting), (newest, measured(0.8))):
        decision = strict.decide(version, figures, shelf.unmeasured)
        assert (decision.champion, decision.has_passed, shelf.alias()) == (None, True, None)
    strict.promote(older, by="ann", why="")
    shelf.client.delete_registered_model_alias(NAME, "champion")
    assert not strict.decide(newest, measured(0.8), shelf.unmeasured).has_passed
    assert shelf.alias() == older, "it was approved once"


def test_a_version_that_was_rolled_back_is_not_the_best_of_the_rest(shelf):
    first, _ = shelf.offer(measured(0.7))
    shelf.offer(measured(0.9))
    shelf.promoter().rollback(by="ann", why="")
    shelf.client.delete_registered_model_alias(NAME, "champion")
    shelf.offer(measured(0.1))
    assert shelf.alias() == first


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_that_finish_at_once_the_better_one_stays(shelf, monkeypatch, order):
    """Both have seen the same champion; then the aliases are set in either order, one after the other or mixed."""
    shelf.offer(measured(0.5))
    figures = [measured(0.8), measured(0.9)]
    versions = [shelf.add(each) for each in figures]
    decisions = [
        shelf.promoter().decide(version, each, shelf.unmeasured)
        for version, each in zip(versions, figures, strict=True)
    ]
    assert [decision.champion for decision in decisions] == ["1", "1"]
    set_alias, turns = mlflow.MlflowClient.set_registered_model_alias, [threading.Event(), threading.Event()]

    def in_order(client, name, alias, version):
        if alias != "champion":
            set_alias(client, name, alias, version)
            return
        who = versions.index(str(version))
        if who == order[1] and not turns[who].is_set():
            turns[order[0]].wait(20)
        set_alias(client, name, alias, version)
        turns[who].set()

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", in_order)

    def promote(decision, own):
        # A store that refuses two writes at once is asked again, as by the task's retry.
        for _ in range(20):
            with contextlib.suppress(MlflowException):
                return shelf.promoter().promote_by_gate(decision, own)
        raise AssertionError("MLflow refuses still")

    threads = [threading.Thread(target=promote, args=pair) for pair in zip(decisions, figures, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert shelf.alias() == versions[1]
