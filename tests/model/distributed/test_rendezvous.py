"""The rendezvous: who can reach it, what strangers can read there, how workers leave, and what is left behind."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.distributed import TCPStore

from shardmean.model.distributed.process_group import DeviceInfo
from shardmean.model.distributed.rendezvous import Rendezvous, WorkerGroup
from shardmean.model.distributed.store import Progress, WorkerStore
from shardmean.model.errors import AbortedError, LostPeersError, MissingPeersError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.model.distributed.store import Address


def test_it_listens_at_the_drivers_host_alone():
    port = Rendezvous("127.0.0.1").new_address().port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_a_host_that_is_not_this_machines_is_listened_for_everywhere(caplog):
    """As behind NAT, where spark.driver.host is an address that others reach and this machine does not have."""
    address = Rendezvous("203.0.113.7").new_address()
    assert address.host == "203.0.113.7"
    assert "can't listen at the driver's host 203.0.113.7" in caplog.text
    TCPStore("127.0.0.1", address.port, None, False).set("key", "value")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_driver_may_have_an_ipv6_address():
    rendezvous = Rendezvous("::1")
    address = rendezvous.new_address()
    WorkerStore(address, rank=0, timeout_s=5).publish_progress(Progress("a"))
    assert rendezvous.progress(address, 2) == {0: Progress("a")}


def test_strangers_that_list_its_keys_do_not_learn_the_secret(rendezvous, address):
    with ThreadPoolExecutor(2) as pool:
        groups = list(
            pool.map(lambda rank: WorkerGroup(WorkerStore(address, rank=rank, timeout_s=5), num_workers=2), range(2))
        )
    stranger = TCPStore(address.host, address.port, None, False)
    found = [part for key in stranger.list_keys() for part in (key, stranger.get(key).decode())]
    for group in groups:
        group.__exit__(None, None, None)
    assert sum(f"{address.prefix}/peer/" in part for part in found) == 2
    assert not any(address.secret in part for part in found)
    assert address.secret not in repr(address)
    assert address.secret != rendezvous.new_address().secret


def test_a_connection_that_broke_between_segments_is_made_anew(rendezvous, address):
    sockets_before = set(sockets_to(rendezvous.new_address()))
    WorkerGroup(WorkerStore(rendezvous.new_address(), rank=0, timeout_s=5), num_workers=1)
    for number in set(sockets_to(rendezvous.new_address())) - sockets_before:
        with socket.socket(fileno=os.dup(number)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    with WorkerGroup(WorkerStore(address, rank=0, timeout_s=5), num_workers=1):
        assert not rendezvous.progress(address, 1)[0].is_done


def sockets_to(address: Address) -> Iterator[int]:
    """File descriptors of this process's connections to the store."""
    for number in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
            if connection.family == socket.AF_INET and connection.getpeername()[1] == address.port:
                yield number


@pytest.mark.parametrize("error", [OSError("disk"), None])
def test_an_error_stops_the_peers_before_the_group_closes_and_the_worker_is_done_afterwards(
    rendezvous, address, caplog, error
):
    """Closing a group may take long, or fail: peers must not wait for that, and the driver must still watch it."""
    seen = []

    class Group:
        def close(self, *, broken: bool) -> None:
            seen.append((broken, rendezvous.abort_reason(address), rendezvous.progress(address, 1)[0].is_done))
            raise RuntimeError("NCCL")

    group = WorkerGroup(WorkerStore(address, rank=0, timeout_s=5), num_workers=1)
    group._reducer = Group()

    def work() -> None:
        with group:
            if error is not None:
                raise error

    with pytest.raises((OSError, RuntimeError)) as raised:
        work()
    assert seen == [(True, "disk", False) if error else (False, "", False)]
    assert rendezvous.progress(address, 1)[0].is_done
    # The first error is the cause.
    assert str(raised.value) == ("disk" if error else "NCCL")
    assert ("worker 0 failed, and then failed to leave its group: NCCL" in caplog.text) == (error is not None)


def test_a_worker_that_is_alone_sends_nothing_from_its_device_to_the_cpu(rendezvous):
    assert (
        WorkerGroup(WorkerStore(rendezvous.new_address(), rank=0, timeout_s=5), num_workers=1, device="cuda:1").sums_on
        == "cuda:1"
    )


def test_a_worker_in_a_large_sum_reports_while_bytes_move(rendezvous, address, monkeypatch):
    """Otherwise the driver would take it for hung after the time in which it may stay silent."""
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.PROGRESS_INTERVAL_S", 0)
    seen: list[int] = []

    def work(rank: int) -> None:
        with WorkerGroup(WorkerStore(address, rank=rank, timeout_s=5), num_workers=2) as group:
            for _ in range(2):
                seen.append(rendezvous.progress(address, 2)[rank].num_reports)
                group.all_reduce(torch.ones(5_000_000))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    first, *_, last = sorted(seen)
    assert first == 1
    assert last > 2
    assert all(progress.is_done for progress in rendezvous.progress(address, 2).values())


def test_a_report_within_a_sum_says_what_came_too_soon_after_the_one_before(rendezvous, address, monkeypatch):
    group = WorkerGroup(WorkerStore(address, rank=0, timeout_s=5), num_workers=1)
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.PROGRESS_INTERVAL_S", 1000)
    group.report(lambda last: replace(last, round_index=last.round_index + 1))
    assert rendezvous.progress(address, 1)[0].round_index == 0
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.PROGRESS_INTERVAL_S", 0)
    group.report()
    assert (rendezvous.progress(address, 1)[0].round_index, rendezvous.progress(address, 1)[0].num_reports) == (1, 2)


def test_a_worker_in_a_large_sum_sees_an_abort(rendezvous, address, monkeypatch):
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.PROGRESS_INTERVAL_S", 0)
    are_connected = threading.Barrier(2)

    def work(rank: int) -> str:
        group = WorkerGroup(WorkerStore(address, rank=rank, timeout_s=5), num_workers=2)
        are_connected.wait()
        rendezvous.abort(address, "worker 2 found no data")
        with pytest.raises((AbortedError, LostPeersError)) as stopped, group:
            group.all_reduce(torch.ones(5_000_000))
        return str(stopped.value)

    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(work, range(2)))
    assert any(error.endswith("was stopped: worker 2 found no data") for error in errors)


def test_of_a_segment_that_ended_only_the_abort_flag_is_left(rendezvous):
    address, other = rendezvous.new_address(), rendezvous.new_address()
    for each in (address, other):
        WorkerStore(each, rank=0, timeout_s=5).publish_progress(Progress("a"))
    rendezvous.abort(address, "a worker was lost")
    rendezvous.end(address)
    assert rendezvous.progress(address, 1) == {}
    assert rendezvous.abort_reason(address) == "a worker was lost"
    assert rendezvous.progress(other, 1) == {0: Progress("a")}


def test_workers_that_do_not_publish_their_device_are_named(rendezvous):
    expected = r"worker 0 could not reach workers 1, 2: no device/1, device/2 after 1 s"
    with pytest.raises(MissingPeersError, match=expected):
        WorkerGroup(WorkerStore(rendezvous.new_address(), rank=0, timeout_s=1), num_workers=3)


def test_workers_of_which_only_some_have_a_gpu_fail_at_once(rendezvous, address, monkeypatch):
    """As where one machine's driver is broken: by themselves some would wait for NCCL and others for TCP."""
    cpu, gpu = DeviceInfo("a", "cpu"), DeviceInfo("b", "cuda", "GPU-1", "13.0")
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.device_info", {"cpu": cpu, "cuda:0": gpu}.get)

    def join(rank: int, device: str) -> str:
        with pytest.raises(UserError) as refused:
            WorkerGroup(WorkerStore(address, rank=rank, timeout_s=300), num_workers=2, device=device)
        return str(refused.value)

    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(join, range(2), ["cpu", "cuda:0"]))
    expected = (
        "workers compute on different kinds of device (cpu for worker 0 on a; cuda for worker 1 on b) and can't "
        "average: give each a GPU and a torch for CUDA, or set device=cpu"
    )
    assert errors == [expected] * 2
