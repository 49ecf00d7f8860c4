"""One writer at a time, by its number; a dead or silent holder is passed over; one that lost the lease stops."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from shardmean.model.errors import LeaseLostError, RetryableError
from shardmean.model.storage import filesystem
from shardmean.model.storage.lease import Lease

QUICK_S = 0.6
HOLD = """
import sys, time
from shardmean.model.storage.lease import Lease
with Lease(sys.argv[1], what="this training", silent_after_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def lease(folder, silent_after_s=QUICK_S) -> Lease:
    return Lease(str(folder), what="this training", silent_after_s=silent_after_s)


def files(folder) -> list[str]:
    """The numbers' files; signs of life come beside them at any time."""
    return sorted(file.name for file in (folder / "lease").iterdir() if file.suffix != ".life")


def holder_in_another_process(folder, silent_after_s=QUICK_S) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), str(silent_after_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = holder_in_another_process(tmp_path)
    yield process
    process.kill()
    process.wait()


def test_each_holder_has_a_greater_number(tmp_path):
    for number in range(1, 4):
        with lease(tmp_path) as held:
            held.check()
            assert files(tmp_path) == [f"{number:08d}.json"]


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, other):
    with pytest.raises(RetryableError, match="this training is already running: process") as refused, lease(tmp_path):
        pass
    assert f"process {other.pid} on {os.uname().nodename}" in str(refused.value)
    assert files(tmp_path) == ["00000001.json"]


def test_a_dead_process_of_this_machine_is_passed_over_at_once(tmp_path, other):
    other.kill()
    other.wait()
    with lease(tmp_path, silent_after_s=1000) as held:
        held.check()
        assert files(tmp_path) == ["00000002.json"]


@pytest.mark.parametrize("change", [{"kernel": "other-boot pid:[1]"}, {"kernel": ""}, {"host": "elsewhere"}])
def test_one_whose_process_numbers_are_not_ours_is_not_taken_for_dead(tmp_path, monkeypatch, change):
    """A container on the same host has a process of each number, or none: only silence tells."""
    with lease(tmp_path, silent_after_s=1000):
        as_if_elsewhere(tmp_path, **{"host": os.uname().nodename, "pid": 2**22 + 1} | change)
        waited = []
        monkeypatch.setattr(
            "shardmean.model.storage.lease.time.sleep", lambda _s: waited.append(as_if_elsewhere(tmp_path, beats=1))
        )
        with pytest.raises(RetryableError, match="this training is already running"), lease(tmp_path, silent_after_s=5):
            pass
        assert waited


def as_if_elsewhere(folder, **changes) -> None:
    (file,) = (folder / "lease").glob("*.json")
    forged = json.loads(file.read_text()) | {"host": "elsewhere"} | changes
    # Whole at once: a reader in between would take a file that is cut for a lease that is over.
    filesystem.write_bytes(str(file), json.dumps(forged).encode())


def test_a_holder_elsewhere_is_passed_over_when_it_stays_silent(tmp_path, other):
    other.send_signal(signal.SIGSTOP)
    as_if_elsewhere(tmp_path)
    with lease(tmp_path) as held:
        held.check()
        assert files(tmp_path) == ["00000002.json"]


def test_a_holder_elsewhere_that_beats_is_left_alone(tmp_path):
    with lease(tmp_path):
        as_if_elsewhere(tmp_path)
        stop = threading.Event()

        def beat() -> None:
            number = 0
            while not stop.wait(0.02):
                number += 1
                as_if_elsewhere(tmp_path, beats=1000 + number)

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            with pytest.raises(RetryableError, match="on elsewhere"), lease(tmp_path, silent_after_s=5):
                pass
        finally:
            stop.set()
            thread.join()


def test_one_that_was_passed_over_stops_and_leaves_the_other_alone(tmp_path):
    with lease(tmp_path) as first:
        as_if_elsewhere(tmp_path, released=True)
        with lease(tmp_path) as second:
            with pytest.raises(LeaseLostError, match=re.escape(f"taken over by process {os.getpid()}")):
                first.check()
            second.check()
            first.__exit__(None, None, None)
            second.check()
            assert "released" not in second._read(2)


def test_signs_of_life_never_make_a_holder_take_its_lease_for_lost(tmp_path, monkeypatch):
    """On hdfs a file that is written anew is absent for a moment: Arrow deletes it before it renames the new one."""
    write, seen, enough = filesystem.write_bytes, [], threading.Event()

    def write_as_on_hdfs(uri, data):
        filesystem.delete(uri)
        try:
            held.check()
            seen.append((held.is_lost(), lease(tmp_path)._read(1).get("pid")))
        except RetryableError as error:
            seen.append(error)
        write(uri, data)
        if len(seen) == 3:
            enough.set()

    with lease(tmp_path, silent_after_s=0.1) as held:
        monkeypatch.setattr(filesystem, "write_bytes", write_as_on_hdfs)
        assert enough.wait(20)
    assert seen == [(False, os.getpid())] * len(seen)


def test_a_lease_that_was_deleted_stops_its_holder(tmp_path):
    with lease(tmp_path) as held:
        (tmp_path / "lease" / "00000001.json").unlink()
        with pytest.raises(RetryableError, match=r"00000001.json is gone, .* delete nothing in that folder") as caught:
            held.check()
        assert not isinstance(caught.value, LeaseLostError)
        assert not held.is_lost(), "nobody took it"


def test_signs_of_life_of_an_earlier_holder_of_the_number_count_for_nothing(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000001.life").write_text(json.dumps({"nonce": "other", "released": True}))
    with lease(tmp_path, silent_after_s=1000) as held:
        assert "released" not in held._read(1)


def test_one_that_ended_is_followed_at_once_and_its_files_are_deleted(tmp_path):
    with lease(tmp_path):
        as_if_elsewhere(tmp_path)
    assert (tmp_path / "lease" / "00000001.life").exists()
    with lease(tmp_path, silent_after_s=1000):
        assert [file.name for file in (tmp_path / "lease").iterdir()] == ["00000002.json"]


def test_of_many_that_try_at_once_one_wins(tmp_path):
    barrier, won = threading.Barrier(8), []

    def compete() -> None:
        mine = lease(tmp_path)
        mine._number = 1
        barrier.wait()
        with contextlib.suppress(RetryableError):
            mine._take()
            won.append(mine)

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_damaged_lease_file_holds_nothing(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000007.json").write_text("{cut sh")
    with lease(tmp_path) as held:
        held.check()
        assert files(tmp_path) == ["00000008.json"]


def test_a_claim_of_a_killed_process_does_not_lock_a_store_for_ever(new_bucket):
    folder = filesystem.join(new_bucket(), "set")
    filesystem.write_bytes(filesystem.join(folder, "lease", "claim-00000001-dead"), b"{}")
    with Lease(folder, what="this training", silent_after_s=0.5) as held:
        held.check()
    assert filesystem.list_names(filesystem.join(folder, "lease")) == ["00000001.json", "00000001.life"]


def test_of_two_that_try_at_once_on_a_store_one_wins_and_is_named(new_bucket):
    for round_index in range(3):
        folder, outcomes, both = filesystem.join(new_bucket(), "set"), [], threading.Barrier(2)
        done = threading.Barrier(2)

        def compete(folder=folder, outcomes=outcomes, both=both, done=done) -> None:
            both.wait()
            try:
                with Lease(folder, what="this training", silent_after_s=5):
                    outcomes.append("won")
                    done.wait(20)
            except RetryableError as error:
                outcomes.append(str(error))
                done.wait(20)

        threads = [threading.Thread(target=compete) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won, refused = sorted(outcomes, key=len)
        assert won == "won", round_index
        assert f"process {os.getpid()} on" in refused
