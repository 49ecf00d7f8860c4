"""Broadcasts the large parts of the workers' states, because Spark limits the size of a task."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyspark import Broadcast

from shardmean.jobs.spark.session import is_local_mode
from shardmean.model.config.optimizer import num_optimizer_slots
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyspark import SparkContext

    from shardmean.model.training.messages import Task

LARGE_BYTES = 2**18
# Copies of what comes back that the driver's heap holds at once. Measured: a heap of 1 GiB has room for 250 MiB and
# not for 330 MiB; in local mode, where it holds the executor too, for 134 MiB and not for 180 MiB.
COPIES, COPIES_IN_LOCAL_MODE = 2.5, 5
# Settings of the driver to raise, by the words of Spark's errors; repeating the job would fail in the same way.
_REMEDIES = {
    "spark.rpc.message.maxSize": "exceeds max allowed",
    "spark.driver.maxResultSize": "is bigger than spark.driver.maxResultSize",
    "spark.driver.memory": "java.lang.OutOfMemoryError",
}


@contextmanager
def broadcast_states(context: SparkContext, tasks: Sequence[Task], live: list[Broadcast[Any]]) -> Iterator[list[Task]]:
    """The tasks to send in place of `tasks`, whose states have broadcasts in place of large parts.

    A part of a state that several tasks share is broadcast once. `live` lists the broadcasts while the `with` block
    runs, and after a failed one until the next begins.
    Raises UserError where the states do not fit into the driver's memory.
    """
    parts = {id(part): part for task in tasks for part in task.state.values()}
    _check_room(context, tasks, sum(map(num_bytes, parts.values())))
    _destroy(live)
    sent = {key: context.broadcast(part) for key, part in parts.items() if num_bytes(part) >= LARGE_BYTES}
    live += sent.values()
    yield [replace(task, state={name: sent.get(id(v), v) for name, v in task.state.items()}) for task in tasks]
    # Not after a failure or an interrupt: tasks may still run, and Spark would wait until they release the broadcast.
    _destroy(live)


def _destroy(live: list[Broadcast[Any]]) -> None:
    while live:
        live.pop().destroy()


def restored_state(task: Task) -> Task:
    """Inside a Spark task: the task with its whole state."""
    state = {name: v.value if isinstance(v, Broadcast) else v for name, v in task.state.items()}
    return replace(task, state=state)


def num_bytes(state: Any) -> int:
    """Bytes of all tensors in a state."""
    from torch import Tensor  # slow to import, and the ETL sends no states

    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(num_bytes(value) for value in state.values())
    return sum(num_bytes(value) for value in state) if isinstance(state, list | tuple) else 0


def no_room(context: SparkContext, text: str) -> UserError | None:
    """The user's mistake where the text of Spark's error says that the states did not fit into the driver."""
    if "Job aborted" in text and "OutOfMemoryError" in text:
        return None  # an executor's memory: a retry may find a machine with more
    for setting, sign in _REMEDIES.items():
        line = next((line.strip() for line in text.splitlines() if sign in line), None)
        if line is not None:
            remedy = _raise(context, setting)
            return UserError(f"the workers' states are too large for Spark's driver: {line}; {remedy}")
    return None


def _check_room(context: SparkContext, tasks: Sequence[Task], sent_bytes: int) -> None:
    """Raise UserError where the states do not fit into the driver: without memory it would hang, not fail."""
    returned_bytes = _returned_bytes(tasks)
    limit = _bytes_of(context, "spark.driver.maxResultSize", "1g")
    if 0 < limit < returned_bytes:
        raise UserError(
            f"the workers' states are {_mib(returned_bytes)}, more than Spark's driver takes back at once "
            f"({_mib(limit)}): {_raise(context, 'spark.driver.maxResultSize')}, or use a smaller network, or fewer "
            "workers where averaging.optimizer_state is keep"
        )
    runtime = context._jvm.java.lang.Runtime  # type: ignore[union-attr]  # noqa: SLF001 - PySpark has no name for it
    copies = COPIES_IN_LOCAL_MODE if is_local_mode(context) else COPIES
    needed_bytes, heap_bytes = sent_bytes + int(copies * returned_bytes), int(runtime.getRuntime().maxMemory())
    if needed_bytes > heap_bytes:
        raise UserError(
            f"the workers' states are {_mib(returned_bytes)}, for which Spark's driver needs about "
            f"{_mib(needed_bytes)} of memory, and it has {_mib(heap_bytes)}: {_raise(context, 'spark.driver.memory')}"
        )


def _returned_bytes(tasks: Sequence[Task]) -> int:
    """Bytes of the states that come back: the model and outer momentum once, and the optimizers' by their policy."""
    config, state = tasks[0].config, tasks[0].state
    if tasks[0].rounds is None:
        return 0
    model_bytes, policy = num_bytes(state["model"]), config.averaging.optimizer_state
    optimizer_bytes = 0 if policy == "reset" else num_bytes(state["optimizer"])
    if state["optimizer"] is None and policy != "reset" and not config.fine_tuning.freeze:
        # Optimizers make their state at the first step, for parameters that are not frozen.
        optimizer_bytes = num_optimizer_slots(config.optimizer) * model_bytes
    outer_bytes = 0 if config.averaging.outer.is_plain else model_bytes
    return model_bytes + outer_bytes + optimizer_bytes * (len(tasks) if policy == "keep" else 1)


def _raise(context: SparkContext, setting: str) -> str:
    value = context.getConf().get(setting) or "not set"
    return f"raise {setting} ({value}) in `spark` of the job, or in spark-submit's settings"


def _mib(num: int) -> str:
    return f"{num / 2**20:.0f} MiB"


def _bytes_of(context: SparkContext, setting: str, default: str) -> int:
    return int(context._jsc.sc().conf().getSizeAsBytes(setting, default))  # noqa: SLF001 - PySpark has no name for it
