"""Augmentation in training: what an example becomes depends on no worker, batch or retry; evaluation never sees it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import torch

from shardmean.model.augmentation.augmenter import Augmenter
from shardmean.model.config.augmentation import AugmentationConfig
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.hashing import example_keys
from shardmean.model.dataset.loader import minibatches
from shardmean.model.errors import UserError
from shardmean.model.training import checkpoint, worker
from shardmean.model.training.augmentation_preview import preview
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.messages import Rounds
from shardmean.model.training.trainer import Trainer
from shardmean.model.training.worker import train_rounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.model.dataset.reader import Dataset, Examples
    from shardmean.model.training.messages import Report, Task

CHANGES = {"flip_horizontal": 0.5, "rotate_degrees": 20, "translate_px": 1, "hue": 0.2, "contrast": 0.4, "erase": 0.3}
Seen = dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def launchers() -> Iterator[dict[int, LocalLauncher]]:
    with LocalLauncher(1) as alone, LocalLauncher(2) as pair:
        yield {1: alone, 2: pair}


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), rows={"train": 50, "validation": 10}, shape=(3, 9, 8))


def training(dataset: Dataset, launchers, *, num_workers: int = 1, **other) -> Trainer:
    settings = {
        "network": "small_cnn",
        "augmentation": CHANGES,
        "num_workers": num_workers,
        "batch_size_per_worker": 8,
        "seed": 5,
        "timeout_s": 120,
    }
    return Trainer(TrainingConfig(**(settings | other)), dataset, launchers[num_workers])


def digest(image_CHW: torch.Tensor) -> str:
    return hashlib.sha256(image_CHW.contiguous().numpy().tobytes()).hexdigest()


def recorded(task: Task, device: str) -> Report:
    """A worker's epoch whose report tells, in place of ids, what the model was given: id, label and image."""
    backward = worker.Replica.backward
    seen: list[str] = []

    def backward_and_record(self: worker.Replica, batch: Examples) -> None:
        def record(_model: object, inputs: tuple[torch.Tensor]) -> None:
            rows = zip(batch.ids, batch.labels_N, inputs[0], strict=True)
            seen.extend(f"{example_id} {label} {digest(image)}" for example_id, label, image in rows)

        hook = self.model.register_forward_pre_hook(record)
        backward(self, batch)
        hook.remove()

    worker.Replica.backward = backward_and_record
    try:
        return replace(train_rounds(task, device), ids=seen)
    finally:
        worker.Replica.backward = backward


def seen_in_training(trained: Trainer, *, epoch: int) -> Seen:
    config, manifest = trained.config, trained.dataset.manifest
    state = {"model": trained.first_state().model, "optimizer": None, "outer_momentum": None}
    plan = worker.plan_training(config, manifest, epoch=epoch, num_workers=config.num_workers)
    tasks = {"rounds": Rounds(epoch=epoch, first=0, stop=plan.num_rounds), "trace_ids": True}
    reports, _ = trained._run(recorded, lambda: ([state] * config.num_workers, tasks))
    lines = [line.split() for report in reports for line in report.ids]
    assert len(lines) == 50
    return {example_id: (int(label), image) for example_id, label, image in lines}


@pytest.fixture(scope="module")
def seen(dataset, launchers) -> Seen:
    return seen_in_training(training(dataset, launchers), epoch=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_workers": 2},
        {"num_workers": 1},
        {"batch_size_per_worker": 13},
        {"shuffle_buffer_bytes": 4000},
        {"prefetch_batches": 3},
    ],
    ids=["two workers", "a retry", "another batch size", "another order", "read ahead"],
)
def test_an_example_becomes_the_same_whoever_trains_on_it(dataset, launchers, seen, settings):
    assert seen_in_training(training(dataset, launchers, **settings), epoch=1) == seen


def test_an_example_becomes_what_the_augmenter_makes_of_its_id_and_keeps_its_label(dataset, seen):
    augmenter = Augmenter(AugmentationConfig(**CHANGES), seed=5, epoch=1, mean=dataset.manifest.mean)
    for shard in dataset.manifest.shards_of("train"):
        examples = dataset.read(shard, 0, shard.num_examples)
        changed = augmenter(torch.from_numpy(examples.features_NCHW), example_keys(pa.array(examples.ids)))
        for example_id, label, image in zip(examples.ids, examples.labels_N, changed, strict=True):
            assert seen[example_id] == (label, digest(image))


def test_the_preview_shows_what_training_will_see(dataset, launchers, seen):
    trained = training(dataset, launchers)
    images_NECHW = preview(trained.config, dataset)
    assert images_NECHW.shape == (5, 6, 3, 9, 8), "all rows of a small shard, as given and in five epochs"
    examples = dataset.read(dataset.manifest.shards_of("train")[0], 0, 1)
    np.testing.assert_array_equal(images_NECHW[0, 0], examples.features_NCHW[0])
    assert digest(torch.from_numpy(images_NECHW[0, 2])) == seen[examples.ids[0]][1], "epoch 1 is the second"


def test_another_epoch_or_seed_gives_other_images_of_the_same_labels(dataset, launchers, seen):
    for other in (
        seen_in_training(training(dataset, launchers), epoch=2),
        seen_in_training(training(dataset, launchers, seed=6), epoch=1),
    ):
        assert {name: label for name, (label, _) in other.items()} == {name: label for name, (label, _) in seen.items()}
        assert all(other[name] != seen[name] for name in seen)


def test_switched_off_training_sees_the_images_as_they_are(dataset, launchers):
    seen = seen_in_training(training(dataset, launchers, augmentation={"probability": 0, "hue": 0.5}), epoch=1)
    for shard in dataset.manifest.shards_of("train"):
        examples = dataset.read(shard, 0, shard.num_examples)
        for example_id, image in zip(examples.ids, examples.features_NCHW, strict=True):
            assert seen[example_id][1] == digest(torch.from_numpy(image))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_resumed_is_uninterrupted_to_the_bit_with_schedule_and_outer_momentum(dataset, launchers, tmp_path, place):
    """From the middle of an epoch, its end, and the middle of the next."""
    trained = training(
        dataset,
        launchers,
        num_workers=2,
        num_epochs=2,
        checkpoint_every_rounds=1,
        averaging={"frequency": 2, "outer": {"learning_rate": 0.8, "momentum": 0.6}},
        optimizer={"learning_rate": 0.01, "schedule": {"name": "cosine"}},
    )
    states = []
    whole = trained.fit(None, states.append)
    assert [state.ends_epoch for state in states] == [False, True, False, True]
    checkpoint.save(str(tmp_path), states[place])
    resumed = trained.fit(checkpoint.load_latest(str(tmp_path)), lambda state: None)
    assert all(torch.equal(whole.model[name], resumed.model[name]) for name in whole.model)


def test_evaluation_sees_no_augmentation(dataset, launchers):
    model = training(dataset, launchers).first_state().model
    on, off = (
        training(dataset, launchers, augmentation=changes).evaluate(model, "validation").metrics()
        for changes in (CHANGES, {})
    )
    assert on == off


def test_what_cannot_be_done_to_gray_images_is_refused_before_a_worker_starts(make_dataset, launchers, tmp_path):
    gray = make_dataset(tmp_path, rows={"train": 20}, shape=(1, 8, 8))
    with pytest.raises(UserError, match=r"augmentation\.hue = 0\.2: images of 1 channel"):
        training(gray, launchers).fit(None, lambda state: None)


def test_keys_are_those_of_the_ids_and_read_only_when_asked_for(dataset):
    plan = worker.plan_training(TrainingConfig(batch_size_per_worker=7), dataset.manifest, epoch=0, num_workers=1)

    def batches(**wanted: bool) -> Iterator[Examples]:
        return minibatches(dataset, plan.windows(0), "train", batch_size=7, **wanted)

    for batch in batches(with_names=True, with_keys=True):
        np.testing.assert_array_equal(batch.keys_N, example_keys(pa.array(batch.ids)))
    for batch in batches(with_names=False, with_keys=True):
        assert batch.ids == batch.paths == []
        assert len(batch.keys_N) == len(batch.labels_N)
    assert all(batch.keys_N is None for batch in batches(with_names=True))


def test_training_without_augmentation_does_not_load_kornia():
    code = "import sys; from shardmean.model.training import local_launcher, trainer; print('kornia' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
