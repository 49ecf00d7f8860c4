"""A checkpoint's laws: all of it comes back, the last two are kept, damage is passed over, and nothing is executed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from shardmean.model.dataset.sampler import Stage
from shardmean.model.errors import RetryableError
from shardmean.model.training import checkpoint
from shardmean.model.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def state_after(epoch: int, **other: Any) -> Checkpoint:
    parameter = torch.nn.Parameter(torch.full((3,), float(epoch)))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    fields = {
        "epoch": epoch,
        "model": {"weight": parameter.detach(), "num_batches_tracked": torch.tensor(epoch)},
        "optimizers": [optimizer.state_dict(), None],
        "outer_momentum": torch.randn(3, generator=torch.Generator().manual_seed(epoch)),
        "history": [{"train_loss": 1 / 3, "validation_accuracy": 0.1 * number} for number in range(epoch)],
        "best_epoch": 1,
        "best_model": {"weight": torch.ones(3)},
    }
    return Checkpoint(**(fields | other))


def epochs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def with_digest(archive: bytes) -> bytes:
    return hashlib.sha256(archive).digest() + archive


def path_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:06d}.pt"


def test_all_of_it_comes_back(tmp_path):
    saved = state_after(3)
    checkpoint.save(str(tmp_path), saved)
    loaded = checkpoint.load_latest(str(tmp_path))
    torch.testing.assert_close(dataclasses.asdict(loaded), dataclasses.asdict(saved), rtol=0, atol=0)
    assert loaded.model["num_batches_tracked"].dtype == torch.int64


def test_absent_parts_come_back_as_absent(tmp_path):
    checkpoint.save(str(tmp_path), Checkpoint(1, {"weight": torch.ones(2)}, [None]))
    assert checkpoint.load_latest(str(tmp_path)).outer_momentum is None
    assert checkpoint.load_latest(str(tmp_path)).optimizers == [None]


def test_no_folder_is_no_checkpoint(tmp_path):
    assert checkpoint.load_latest(str(tmp_path / "none")) is None


def test_the_last_two_and_the_best_are_kept(tmp_path):
    for epoch in (1, 2, 9, 10, 11):
        checkpoint.save(str(tmp_path), dataclasses.replace(state_after(epoch), best_epoch=min(epoch, 2)))
    assert epochs_in(tmp_path) == ["epoch-000002.pt", "epoch-000010.pt", "epoch-000011.pt"]
    assert checkpoint.load_latest(str(tmp_path)).epoch == 11


def test_every_nth_and_as_many_as_wanted_are_kept(tmp_path):
    for epoch in range(1, 12):
        state = dataclasses.replace(state_after(epoch), best_epoch=0)
        checkpoint.save(str(tmp_path), state, keep_last=3, keep_every_epochs=4)
    assert [int(name[6:12]) for name in epochs_in(tmp_path)] == [4, 8, 9, 10, 11]


def test_those_within_an_epoch_stand_between_the_epochs_and_go_first(tmp_path):
    places = [(1, ()), (1, (Stage(2, 5),)), (1, (Stage(2, 10),)), (1, (Stage(2, 10), Stage(1, 3))), (2, ())]
    for number, (epoch, stages) in enumerate(places):
        state = dataclasses.replace(state_after(epoch), stages=stages, num_steps=number, best_epoch=1)
        checkpoint.save(str(tmp_path), state)
        latest = checkpoint.load_latest(str(tmp_path))
        assert (latest.epoch, latest.stages, latest.num_steps) == (epoch, stages, number)
    assert epochs_in(tmp_path) == ["epoch-000001-stage-002-round-000000003.pt", "epoch-000001.pt", "epoch-000002.pt"]


def test_the_latest_is_that_furthest_in_training_whatever_the_names_order(tmp_path):
    """A later stage comes after all rounds of the one before, a whole epoch after all of its stages."""
    in_order = [
        (1, (Stage(2, 5),)), (1, (Stage(2, 40),)), (1, (Stage(2, 40), Stage(1, 3))),
        (1, (Stage(2, 40), Stage(1, 3), Stage(2, 1))), (2, ()), (2, (Stage(2, 1),)), (10, ()),
    ]  # fmt: skip
    for number, (epoch, stages) in enumerate(in_order):
        state = dataclasses.replace(state_after(epoch), stages=stages, num_steps=number, best_epoch=0)
        checkpoint.save(str(tmp_path / str(number)), state)
        (path,) = (tmp_path / str(number)).iterdir()
        path.rename(tmp_path / path.name)
    for number in reversed(range(len(in_order))):
        latest = checkpoint.load_latest(str(tmp_path))
        assert latest.num_steps == number
        (tmp_path / latest.name).unlink()


def test_delete_all_leaves_other_files(tmp_path):
    checkpoint.save(str(tmp_path), state_after(1))
    (tmp_path / "note.txt").write_text("mine")
    checkpoint.delete_all(str(tmp_path))
    assert epochs_in(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, share):
    checkpoint.save(str(tmp_path), state_after(1))
    checkpoint.save(str(tmp_path), state_after(2))
    content = path_of(tmp_path, 2).read_bytes()
    path_of(tmp_path, 2).write_bytes(content[: int(len(content) * share)])
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_latest(str(tmp_path)).epoch == 1
    (record,) = caplog.records
    assert "epoch-000002.pt: not a readable checkpoint" in record.getMessage()
    assert "using the previous checkpoint" in record.getMessage()


def test_a_checkpoint_with_another_byte_is_not_trusted(tmp_path):
    checkpoint.save(str(tmp_path), state_after(1))
    content = path_of(tmp_path, 1).read_bytes()
    weight = state_after(1).outer_momentum.numpy().tobytes()
    assert content.count(weight) == 1
    path_of(tmp_path, 1).write_bytes(content.replace(weight, bytes(12)))
    with pytest.raises(RetryableError, match="not a readable checkpoint"):
        checkpoint.load(str(path_of(tmp_path, 1)))


def test_what_is_saved_after_damage_is_what_is_loaded(tmp_path):
    # Both kept ones are lost, so the training starts anew: its first epochs must not be taken for old ones.
    for epoch in (9, 10):
        path_of(tmp_path, epoch).write_bytes(b"damaged")
    assert checkpoint.load_latest(str(tmp_path)) is None
    checkpoint.save(str(tmp_path), state_after(1))
    assert checkpoint.load_latest(str(tmp_path)).epoch == 1


class Command:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path):
    witness = tmp_path / "executed"
    content = {"version": checkpoint.VERSION} | dataclasses.asdict(state_after(1))
    stream = io.BytesIO()
    torch.save(content | {"history": [Command(witness)]}, stream)
    path_of(tmp_path, 1).write_bytes(with_digest(stream.getvalue()))
    with pytest.raises(RetryableError, match=r"epoch-000001.pt: not a readable checkpoint \(UnpicklingError\)"):
        checkpoint.load(str(path_of(tmp_path, 1)))
    assert checkpoint.load_latest(str(tmp_path)) is None
    assert not witness.exists()
    torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    assert witness.exists(), "the command would not have run in any case: the test shows nothing"


def test_another_version_is_refused(tmp_path):
    stream = io.BytesIO()
    torch.save({"version": 1} | dataclasses.asdict(state_after(1)), stream)
    path_of(tmp_path, 1).write_bytes(with_digest(stream.getvalue()))
    with pytest.raises(RetryableError, match=r"epoch-000001.pt: checkpoint version 1, this Shardmean reads 4"):
        checkpoint.load(str(path_of(tmp_path, 1)))


def test_a_failed_save_keeps_the_one_before(tmp_path, monkeypatch):
    checkpoint.save(str(tmp_path), state_after(1))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RetryableError, match="No space left on device"):
        checkpoint.save(str(tmp_path), state_after(2))
    assert epochs_in(tmp_path) == ["epoch-000001.pt"]
