"""What each task needs around it on a worker: errors as values, the DataSet opened once, threads, random numbers."""

from __future__ import annotations

import logging
import socket
import traceback
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.distributed import DistError

from ..dataset.manifest import load_manifest
from ..dataset.reader import Dataset
from ..dataset.shard_cache import ShardCache, cache_folder
from ..distributed.rendezvous import WorkerGroup
from ..distributed.store import Progress, WorkerStore
from ..errors import DivergedError, PeerError, RetryableError, UserError
from ..storage import filesystem
from .environment import this_environment
from .messages import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .messages import Report, Task, Work


log = logging.getLogger(__name__)


def attempt(work: Work, task: Task, device: str | Callable[[], str]) -> Report | Failure:
    """Run a task and give its error back as a value: the driver then knows who failed and why."""
    try:
        _store(task).publish_progress(Progress(socket.gethostname()))
        this_environment().check_same(task.environment)
        return _within_memory(work, task, device if isinstance(device, str) else device())
    except Exception as error:
        failure = Failure(task.rank, socket.gethostname(), *_described(task, error))
        # Peers may be waiting for this worker, also where it failed before it connected to them.
        with suppress(RuntimeError):
            _store(task).mark_done(error)
        return failure
    finally:
        # Here the error is gone, which kept alive all that its frames hold. Spark may give the next task of this
        # process another GPU, and this GPU to another process.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch gives it no types
            with suppress(RuntimeError):  # after an error of CUDA there is nothing to free
                torch.cuda.empty_cache()


def _within_memory(work: Work, task: Task, device: str) -> Report:
    try:
        return work(task, device)
    except torch.OutOfMemoryError as error:
        config = task.config
        remedy = f"lower batch_size_per_worker (now {config.batch_size_per_worker})"
        if config.compute.precision != "bfloat16":
            remedy += " or set compute.precision=bfloat16"
        if config.allow_shared_gpu:
            remedy += ", or lower num_workers, since allow_shared_gpu is set"
        raise UserError(f"{device} has too little memory: {f'{error}'.split('. GPU ')[0]}; {remedy}") from error


def _store(task: Task) -> WorkerStore:
    return WorkerStore(task.address, rank=task.rank, timeout_s=task.config.timeout_s)


def _described(task: Task, error: Exception) -> tuple[str, str, str]:
    """Kind, message and trace of a failure."""
    text, trace = task.address.hidden(f"{error}"), task.address.hidden(traceback.format_exc())
    match error:
        case UserError():
            return "user", text, trace
        case DivergedError():
            return "diverged", text, trace
        case RetryableError() | OSError():
            return "retryable", text, trace
        case PeerError() | DistError():  # process groups raise torch's own when another left or stopped this one
            return "peer", text, trace
    return "bug", f"{type(error).__name__}: {text}", trace


@lru_cache(maxsize=4)
def open_dataset(uri: str, digest: str, *, cache_bytes: int = 0) -> Dataset:
    """The version `digest` of a DataSet; opened once a process, since a version never changes."""
    manifest = load_manifest(uri, digest)
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    if not cache_bytes or filesystem.local_path(uri) is not None:
        return Dataset(uri, manifest)
    if num_bytes > cache_bytes:
        # A window takes rows of all shards: each would be fetched and thrown out again and again.
        log.warning(
            "shard_cache_bytes=%d does not hold the %d bytes of %s: caching nothing", cache_bytes, num_bytes, uri
        )
        return Dataset(uri, manifest)
    return Dataset(uri, manifest, ShardCache(cache_folder(), cache_bytes))


def join_group(task: Task, device: str, *, sums: bool) -> WorkerGroup:
    """Join the task's segment: workers that train sum, those that evaluate only report."""
    allow_shared_gpu = task.config.allow_shared_gpu
    return WorkerGroup(
        _store(task), num_workers=task.num_workers, sums=sums, device=device, allow_shared_gpu=allow_shared_gpu
    )


@contextmanager
def seeded(task: Task, device: str) -> Iterator[None]:
    """Torch's threads, arithmetic and random numbers as the task wants them, while the block runs."""
    # Python workers serve many jobs, so all is restored.
    num_threads, flushed = torch.get_num_threads(), flushes_denormals()
    torch.set_num_threads(task.config.threads_per_worker or 1)
    # Weight decay makes a dead filter's weights ever smaller, and below 1e-38 a CPU computes several times slower.
    torch.set_flush_denormal(True)
    try:
        # Of the task's own device only: to save the random state of all would initialize every GPU.
        # -1: none.
        current = torch.cuda.device(-1 if device == "cpu" else device)
        with current, torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
            position = (task.rounds.epoch, task.rounds.first, len(task.rounds.earlier)) if task.rounds else (0, 0, 0)
            seeds = np.random.SeedSequence([task.config.seed, *position, task.rank])
            seed = int(seeds.generate_state(1)[0])
            torch.default_generator.manual_seed(seed)
            if device != "cpu":
                torch.cuda.manual_seed(seed)
            yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(num_threads)


def flushes_denormals() -> bool:
    """Whether this thread computes with zero in place of denormal numbers."""
    return not (torch.tensor([1e-38]) * 0.01).any()


def open_task_dataset(task: Task) -> Dataset:
    """The task's DataSet, with the machine's cache of its shards where the config has one."""
    return open_dataset(task.dataset_uri, task.digest, cache_bytes=task.config.shard_cache_bytes or 0)
