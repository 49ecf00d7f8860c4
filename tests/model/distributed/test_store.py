"""A worker's view of its segment's keys: what it waits for, whom it believes, progress, aborts and the end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.distributed import DistNetworkError, TCPStore

from shardmean.model.distributed.store import Progress, WorkerStore
from shardmean.model.errors import AbortedError, RetryableError


def test_a_missing_value_is_awaited_until_the_timeout_or_an_abort(rendezvous, address):
    store = WorkerStore(address, rank=1, timeout_s=0.1)
    with pytest.raises(TimeoutError, match=r"no peer/0 after 0\.1 s"):
        store.get("peer/0")
    rendezvous.abort(address, "worker 2 found no data")
    with pytest.raises(AbortedError, match="worker 1 was stopped: worker 2 found no data"):
        WorkerStore(address, rank=1, timeout_s=300).get("peer/0")


def test_workers_read_what_others_publish_and_nothing_that_somebody_else_wrote(address):
    """Any entry: who could change a device could move the sums from authenticated connections to NCCL."""
    stores = [WorkerStore(address, rank=rank, timeout_s=5) for rank in range(2)]
    for rank, store in enumerate(stores):
        store.set(f"device/{rank}", f"device {rank}, \u00fc")
    assert stores[1].get_all(["device/0", "device/1"]) == ["device 0, \u00fc", "device 1, \u00fc"]
    stranger = TCPStore(address.host, address.port, None, False)
    genuine = stranger.get(f"{address.prefix}/device/0")
    stranger.set(f"{address.prefix}/device/0", genuine.replace(b"device 0", b"device 9"))
    with pytest.raises(RetryableError, match=r"worker 1 refused the entry device/0 .*: worker 0 .* did not sign it"):
        stores[1].get_all(["device/1", "device/0"])
    stranger.set(f"{address.prefix}/device/1", genuine)
    with pytest.raises(RetryableError, match=r"worker 0 refused the entry device/1 .*: worker 1 .* did not sign it"):
        stores[0].get("device/1")


def test_the_first_error_is_the_reason_and_all_that_leave_are_done(rendezvous, address):
    stores = [WorkerStore(address, rank=rank, timeout_s=5) for rank in range(3)]
    for store in stores:
        store.publish_progress(Progress("a", round_index=4))
    stores[1].mark_done(OSError("disk"))
    stores[0].mark_done(RuntimeError("worker 1 left"))
    stores[2].mark_done(None)
    assert rendezvous.abort_reason(address) == "disk"
    assert rendezvous.progress(address, 3) == dict.fromkeys(range(3), Progress("a", round_index=4, is_done=True))


def test_the_reason_of_an_abort_which_anybody_can_read_holds_no_secret(rendezvous, address):
    error = RuntimeError(f"no {address.prefix}/peer/1 from {address.secret}")
    WorkerStore(address, rank=0, timeout_s=5).mark_done(error)
    assert rendezvous.abort_reason(address) == "no segment/peer/1 from secret"


def test_a_worker_whose_driver_is_gone_leaves_without_another_error(address):
    store = WorkerStore(address, rank=0, timeout_s=5)

    def gone(*_: object) -> None:
        raise DistNetworkError("Broken pipe")

    store.tcp_store = SimpleNamespace(compare_set=gone, check=gone, get=gone, set=gone)
    store.mark_done(OSError("disk"))
    store.mark_done(None)


def test_progress_reaches_the_driver_by_rank(rendezvous, address):
    assert rendezvous.progress(address, 2) == {}
    progress = Progress("host", round_index=3)
    WorkerStore(address, rank=1, timeout_s=5).publish_progress(progress)
    assert rendezvous.progress(address, 2) == {1: progress}
    assert rendezvous.progress(rendezvous.new_address(), 2) == {}, "each segment has keys of its own"
