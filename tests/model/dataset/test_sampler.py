"""The plan's laws: each row once, equal loads, whole minibatches within the buffer, and an order per (seed, epoch)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shardmean.model.dataset.epoch_layout import ShardRows, Window
from shardmean.model.dataset.sampler import EpochPlan, Stage, plan_epoch, plan_evaluation
from shardmean.model.errors import UserError

ROWS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(ROWS)
    batch_size = draw(st.integers(1, 12))
    num_minibatches = -(-sum(rows) // batch_size)
    return {
        "rows_per_shard": rows,
        "num_workers": draw(st.integers(1, min(9, num_minibatches))),
        "batch_size": batch_size,
        "frequency": draw(st.integers(1, 50) | st.just("epoch")),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "epoch": draw(st.integers(0, 1000)),
        "buffer_rows": draw(st.integers(0, 200)),
        "version": draw(st.sampled_from([1, 2])),
    }


def _plan(given: dict[str, Any]) -> EpochPlan:
    return plan_epoch(_shards(given["rows_per_shard"]), **{k: v for k, v in given.items() if k != "rows_per_shard"})


def _shards(rows_per_shard: list[int]) -> ShardRows:
    return ShardRows(tuple(rows_per_shard), tuple(reversed(range(len(rows_per_shard)))))


def _rows_in_order(window: Window) -> list[tuple[int, int]]:
    shards, rows = window.rows()
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


def _rows_of(plan: EpochPlan, rank: int) -> list[tuple[int, int]]:
    return [row for window in plan.windows(rank) for row in _rows_in_order(window)]


def _all_rows(rows_per_shard: list[int]) -> Counter[tuple[int, int]]:
    return Counter((shard, row) for shard, num_rows in enumerate(rows_per_shard) for row in range(num_rows))


@given(arguments())
def test_every_row_is_in_exactly_one_place_of_one_worker(given):
    plan = _plan(given)
    seen = Counter(row for rank in range(given["num_workers"]) for row in _rows_of(plan, rank))
    assert seen == _all_rows(given["rows_per_shard"])


def _num_examples(plan: EpochPlan, rank: int) -> int:
    return sum(plan.layout.num_examples(part) for part in plan.assignments[rank])


@given(arguments())
def test_order_is_a_permutation_of_exactly_the_window(given):
    plan = _plan(given)
    for rank in range(given["num_workers"]):
        for window in plan.windows(rank):
            sizes = window.ranges_R3[:, 2] - window.ranges_R3[:, 1]
            assert sorted(window.order) == list(range(sizes.sum()))
            assert (sizes > 0).all()


@given(arguments())
def test_loads_differ_by_at_most_one_minibatch(given):
    plan, ranks = _plan(given), range(given["num_workers"])
    minibatches = [plan.num_minibatches(rank) for rank in ranks]
    examples = [_num_examples(plan, rank) for rank in ranks]
    assert max(minibatches) - min(minibatches) <= 1
    assert max(examples) - min(examples) <= given["batch_size"]
    assert min(examples) > 0, "a worker without any example was planned"
    assert sum(minibatches) == -(-sum(examples) // given["batch_size"]), "more than one minibatch is short"


@given(arguments())
def test_all_windows_but_the_last_hold_whole_minibatches(given):
    plan = _plan(given)
    for rank in range(given["num_workers"]):
        sizes = [len(window.order) for window in plan.windows(rank)]
        assert all(size % given["batch_size"] == 0 for size in sizes[:-1])
        assert sum(-(-size // given["batch_size"]) for size in sizes) == plan.num_minibatches(rank)


@given(arguments())
def test_windows_never_exceed_the_buffer(given):
    plan = _plan(given)
    # One minibatch must be in memory whatever the buffer.
    most = max(given["buffer_rows"], given["batch_size"])
    for rank in range(given["num_workers"]):
        assert all(len(window.order) <= most for window in plan.windows(rank))


@given(arguments())
def test_rounds_sum_to_the_epoch(given):
    plan = _plan(given)
    for rank in range(given["num_workers"]):
        rounds = [plan.examples_in_round(rank, index) for index in range(plan.num_rounds)]
        assert sum(rounds) == _num_examples(plan, rank)
        assert rounds[0] > 0, "every worker has work in the first round, which makes its optimizer's state"
        assert plan.examples_in_round(rank, plan.num_rounds) == 0
        filled = [count for count in rounds if count]
        assert rounds[: len(filled)] == filled, "an empty round before a filled one"
        assert set(filled[:-1]) <= {plan.minibatches_per_round * given["batch_size"]}, (
            "a round before the last is short"
        )


@given(arguments())
def test_rounds_hold_the_frequency_and_none_is_empty_for_all(given):
    plan = _plan(given)
    ranks = range(given["num_workers"])
    most = max(plan.num_minibatches(rank) for rank in ranks)
    frequency = most if given["frequency"] == "epoch" else given["frequency"]
    assert plan.num_rounds == -(-most // frequency)
    for index in range(plan.num_rounds):
        counts = [plan.examples_in_round(rank, index) for rank in ranks]
        assert 0 < max(counts) <= frequency * given["batch_size"]


@given(arguments())
def test_same_arguments_give_the_same_order(given):
    one, other = _plan(given), _plan(dict(given))
    for rank in range(given["num_workers"]):
        assert _rows_of(one, rank) == _rows_of(other, rank)


@given(arguments(), st.sampled_from(["seed", "epoch"]))
def test_another_epoch_or_seed_gives_another_order(given, changed):
    # Enough rows in one window, so that the same order by chance is out of the question.
    given |= {"rows_per_shard": [30, 30, 20], "buffer_rows": 80, "batch_size": 10, "num_workers": 2}
    one, other = _plan(given), _plan(given | {changed: given[changed] + 1})
    assert [_rows_of(one, rank) for rank in (0, 1)] != [_rows_of(other, rank) for rank in (0, 1)]


@given(st.integers(0, 2**63 - 1))
def test_rows_are_mixed_and_not_only_shards(seed):
    plan = plan_epoch(_shards([50]), num_workers=1, batch_size=5, frequency=1, seed=seed, epoch=0, buffer_rows=50)
    assert _rows_of(plan, 0) != sorted(_rows_of(plan, 0))


@given(arguments(), st.integers(1, 20))
def test_too_many_workers_are_refused_with_the_numbers(given, excess):
    num_rows, batch_size = sum(given["rows_per_shard"]), given["batch_size"]
    num_minibatches = -(-num_rows // batch_size)
    workers = num_minibatches + excess
    with pytest.raises(UserError) as refusal:
        _plan(given | {"num_workers": workers})
    assert str(refusal.value) == (
        f"num_workers is {workers}, but {num_rows} training examples make only {num_minibatches} minibatches "
        f"of {batch_size}: lower num_workers or batch_size_per_worker, or add images"
    )


def test_no_rows_at_all_are_refused():
    with pytest.raises(UserError, match="0 training examples make only 0 minibatches"):
        plan_epoch(_shards([]), num_workers=1, batch_size=4, frequency=1, seed=0, epoch=0, buffer_rows=8)


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 12), st.integers(1, 16))
def test_evaluation_covers_each_row_once_in_order(rows, batch_size, num_workers):
    plan = plan_evaluation(rows, num_workers=num_workers, batch_size=batch_size)
    seen = [row for rank in range(num_workers) for row in _rows_of(plan, rank)]
    assert seen == sorted(_all_rows(rows))


@given(arguments(), st.integers(1, 9))
def test_workers_cut_one_sequence_that_does_not_depend_on_their_number(given, num_workers):
    assume(num_workers <= -(-sum(given["rows_per_shard"]) // given["batch_size"]))
    one, other = _plan(given), _plan(given | {"num_workers": num_workers})
    assert one.layout.pieces_P3.tolist() == other.layout.pieces_P3.tolist()
    assert other.layout.bounds[0] == 0
    assert other.layout.bounds[-1] == sum(given["rows_per_shard"])


def _rows_of_steps(plan: EpochPlan, rank: int, first: int, stop: int) -> list[tuple[int, int]]:
    windows = plan.windows(rank, first_step=first, stop_step=min(stop, plan.num_minibatches(rank)))
    return [row for window in windows for row in _rows_in_order(window)]


@given(arguments(), st.integers(0, 30), st.integers(1, 30))
def test_reading_from_any_step_gives_the_rest_of_the_same_order(given, first, more):
    plan = _plan(given)
    for rank in range(given["num_workers"]):
        whole = _rows_of(plan, rank)
        part = _rows_of_steps(plan, rank, first, first + more)
        assert part == whole[first * given["batch_size"] : (first + more) * given["batch_size"]]
        assert len(part) == sum(plan.examples_in_step(rank, step) for step in range(first, first + more))


@given(arguments(), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), max_size=4))
def test_every_row_is_seen_once_whatever_number_of_workers_each_leg_has(given, changes):
    """A leg is cut off after some rounds, and other workers go on with what it left."""
    plan, earlier, seen = _plan(given), [], Counter()
    rest = {k: v for k, v in given.items() if k not in ("rows_per_shard", "num_workers")}
    for num_workers, num_rounds in changes:
        done = min(num_rounds, plan.num_rounds - 1)
        if done < 1 or num_workers > -(-sum(given["rows_per_shard"]) // given["batch_size"]):
            break
        stop = done * plan.minibatches_per_round
        for rank in range(plan.num_workers):
            seen += Counter(_rows_of_steps(plan, rank, 0, stop))
        assert plan.examples_after(stop) == seen.total()
        earlier.append(Stage(plan.num_workers, done))
        plan = plan_epoch(_shards(given["rows_per_shard"]), num_workers=num_workers, earlier=earlier, **rest)
        assert plan.num_before == seen.total()
        loads = [plan.num_minibatches(rank) for rank in range(num_workers)]
        assert max(loads) - min(loads) <= 1
    for rank in range(plan.num_workers):
        seen += Counter(_rows_of(plan, rank))
    assert seen == _all_rows(given["rows_per_shard"])


@given(arguments(), st.integers(0, 40))
def test_examples_after_some_steps_are_those_that_the_workers_have_taken(given, num_steps):
    plan = _plan(given)
    taken = sum(len(_rows_of_steps(plan, rank, 0, num_steps)) for rank in range(given["num_workers"]))
    assert plan.examples_after(num_steps) == taken


@pytest.mark.parametrize("version", [1, 2])
def test_one_shard_and_a_small_buffer_still_mix_anew_each_epoch(version):
    """The rows that share a window must not be the same ones in every epoch."""
    windows = []
    for epoch in range(2):
        plan = plan_epoch(
            _shards([100]),
            num_workers=1,
            batch_size=5,
            frequency=1,
            seed=0,
            epoch=epoch,
            buffer_rows=10,
            version=version,
        )
        windows.append({frozenset(w.rows()[1].tolist()) for w in plan.windows(0)})
    assert not windows[0] & windows[1]
