"""What the fixtures of version 0.1.0 hold, by that version's own code: make.py writes it to expected.json."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# All files of the pile have this time, 2026-01-01 00:00 UTC, so that a copy of it can be given the same.
MODIFIED_S = 1_767_225_600


def describe_dataset(versions: Sequence[str]) -> dict[str, Any]:
    """What each version holds."""
    from model.manifest import SPLITS, load_manifest
    from model.shards import Dataset

    described = {}
    for digest in versions:
        manifest = load_manifest("dataset", digest)
        dataset = Dataset("dataset", manifest)
        examples = {}
        for split in SPLITS:
            parts = [e for s in manifest.shards_of(split) for e in dataset.read(s, 0, s.num_examples)]
            pairs = (pair for part in parts for pair in zip(part.paths, part.ids, strict=True))
            examples[split] = dict(sorted(pairs))
        described[digest] = {
            "class_names": manifest.class_names,
            "num_examples": {split: manifest.num_examples(split) for split in SPLITS},
            "num_rejected_by_reason": manifest.num_rejected_by_reason,
            "shards": [shard.name for shard in manifest.shards],
            "ids": examples,
        }
    return {"modified_s": MODIFIED_S, "source_uri": manifest.source.uri, "versions": described, "current": versions[-1]}


def describe_training(folder: Path) -> dict[str, Any]:
    """The plan of the epoch that was cut, and what came of it."""
    from jobs.config import TrainJob, load_job
    from model import checkpoint
    from model.manifest import load_manifest
    from model.plan import Leg
    from model.segment import plan_training
    from model.shards import Dataset

    job = load_job(TrainJob, Path("train.yaml"))
    manifest = load_manifest("dataset")
    cut = checkpoint.load_latest(str(folder))
    assert cut is not None
    ((num_workers, num_done),) = cut.legs
    plan = plan_training(job, manifest, epoch=cut.epoch, num_workers=num_workers)
    assert 0 < num_done < plan.num_rounds, (num_done, plan.num_rounds)
    assert Leg(num_workers, num_done) == cut.legs[0]
    dataset = Dataset("dataset", manifest)
    ids = [ids_of(job, dataset, plan, rank) for rank in range(num_workers)]
    ends = {epoch: finished(epoch) for epoch in (1, 2, 3)}
    assert ends[1]["state_sha256"] == sha256_of(checkpoint.load(str(folder / "epoch-000001.pt")).model)
    seen, undisturbed = in_one_go(job, dataset)
    assert seen[cut.epoch] == ids, "the plan is what is done"
    assert {epoch: sha256_of(state) for epoch, state in undisturbed.items()} == {
        epoch: end["state_sha256"] for epoch, end in ends.items()
    }, "the training that was cut came to the bits of one that was not"
    steps = num_done * plan.minibatches_per_round
    at = [min(len(ids[rank]), steps * job.batch_size_per_worker) for rank in range(num_workers)]
    return {
        "training": {
            "folder": folder.name,
            "dataset_digest": manifest.digest,
            **job.model_dump(
                mode="json",
                include={"run_key", "seed", "num_epochs", "num_workers", "batch_size_per_worker", "averaging",
                         "shuffle_buffer_bytes", "checkpoint_every_rounds"},
            ),
        },
        "cut": {
            "checkpoint": cut.name,
            "epoch": cut.epoch,
            "legs": [list(leg) for leg in cut.legs],
            "num_rounds_done": num_done,
            "num_rounds": plan.num_rounds,
            "minibatches_per_round": plan.minibatches_per_round,
            "num_examples_before": round(cut.running["num_examples"]),
            "loss_sum_before": cut.running["loss_sum"],
            "state_sha256": sha256_of(cut.model),
            "workers": [{"before": ids[r][: at[r]], "after": ids[r][at[r] :]} for r in range(num_workers)],
        },
        "state_sha256_is": "over name (UTF-8) and raw bytes of each tensor of the model's state dict, sorted by name",
        "epochs": [ends[epoch] for epoch in sorted(ends)],
        "best_epoch": checkpoint.load_latest(str(Path("finished") / folder.name)).best_epoch,
    }  # fmt: skip


def ids_of(job: Any, dataset: Any, plan: Any, rank: int) -> list[str]:
    """The ids of one worker's examples in an epoch, in the order it trains on them."""
    from model.feed import minibatches

    size = job.batch_size_per_worker
    return [
        one
        for batch in minibatches(dataset, plan.windows(rank), "train", batch_size=size, with_names=True)
        for one in batch.ids
    ]


def finished(epoch: int) -> dict[str, Any]:
    """The state at the end of one epoch of the training that went on: its hash, and its figures but for times."""
    from model import checkpoint

    (path,) = Path("finished").glob(f"*/epoch-{epoch:06d}.pt")
    state = checkpoint.load(str(path))
    times = ("_s", "seconds", "per_second")
    figures = {name: value for name, value in state.history[-1].items() if not name.endswith(times)}
    return {"epoch": epoch, "checkpoint": path.name, "state_sha256": sha256_of(state.model), "figures": figures}


def sha256_of(state: dict[str, Any]) -> str:
    """The hash of a model's state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def in_one_go(job: Any, dataset: Any) -> tuple[dict[int, list[list[str]]], dict[int, dict[str, Any]]]:
    """The same training in one go, without Spark: each worker's ids by epoch (from 0), and the epochs' last states."""
    from model.shards import Dataset
    from model.training import Training
    from model.transport import LocalTransport

    seen: dict[int, list[list[str]]] = {}

    class Tracing(LocalTransport):
        def run(self, work: Any, tasks: Any) -> Any:
            reports = super().run(work, [dataclasses.replace(task, trace_ids=True) for task in tasks])
            for task, report in zip(tasks, reports, strict=True):
                of_epoch = seen.setdefault(task.rounds.epoch, [[] for _ in tasks])
                of_epoch[task.rank] += report.ids
            return reports

    states: dict[int, dict[str, Any]] = {}

    def keep(state: Any) -> None:
        if state.ends_epoch:
            states[state.epoch] = state.model

    with Tracing(job.num_workers) as transport:
        Training(job, Dataset(str(Path("dataset").resolve()), dataset.manifest), transport).fit(None, keep)
    return seen, states
