"""Clean-up removes dead writers' files of the same user after their grace time, and never a living one's."""

from __future__ import annotations

import errno
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tracing import Tracee, mark

import ttmem
from ttmem import segment
from ttmem.reader import Host


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    return tmp_path


def leave_a_dead_writer(directory: Path, device_id: int = 0) -> Path:
    """Return the file of a writer that was killed."""
    before = set(directory.iterdir())
    pid = os.fork()
    if pid == 0:
        try:
            ttmem.publish(device_id, grid=(1, 1)).allocate("DRAM", 10)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (path,) = set(directory.iterdir()) - before
    return path


def bury(path: Path, when_ns: int) -> None:
    with path.open("r+b") as file:
        file.seek(512 + 16)
        file.write(struct.pack("<Q", when_ns))


def test_a_living_writers_file_is_never_collected(directory: Path) -> None:
    with ttmem.publish(0, grid=(1, 1)) as publisher:
        assert publisher.path is not None
        bury(publisher.path, 1)
        assert segment.collect(directory, "", grace_ns=0) == []
        assert list(directory.iterdir()) == [publisher.path]


def test_a_dead_writers_file_stays_readable_for_its_grace_time_and_then_goes(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    assert segment.collect(directory, "") == [(path, "kept")]
    (device,) = ttmem.devices()
    assert device.state == "stale"
    assert device.processes[0].dram_bytes == 10
    assert segment.collect(directory, "") == [(path, "kept")]
    bury(path, time.time_ns() - segment.GRACE_NS)
    assert segment.collect(directory, "") == [(path, "removed")]
    assert list(directory.iterdir()) == []


def test_the_grace_time_starts_when_the_death_is_first_seen(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    before = time.time_ns()
    segment.collect(directory, "")
    (buried_ns,) = struct.unpack("<Q", path.read_bytes()[528:536])
    assert before <= buried_ns <= time.time_ns()


def test_a_burial_in_the_future_starts_anew(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    bury(path, time.time_ns() + 10**18)
    assert segment.collect(directory, "") == [(path, "kept")]
    (buried_ns,) = struct.unpack("<Q", path.read_bytes()[528:536])
    assert buried_ns <= time.time_ns()


def test_without_a_grace_time_it_goes_at_once(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    assert segment.collect(directory, "", grace_ns=0) == [(path, "removed")]


def test_a_dry_run_changes_nothing(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    before = path.read_bytes()
    assert segment.collect(directory, "", grace_ns=0, dry_run=True) == [(path, "would remove")]
    assert segment.collect(directory, "", dry_run=True) == [(path, "kept")]
    assert path.read_bytes() == before


def test_a_publisher_that_starts_cleans_up(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    bury(path, 1)
    with ttmem.publish(5, grid=(1, 1)) as publisher:
        assert list(directory.iterdir()) == [publisher.path]


def test_another_namespaces_files_are_left_alone(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    assert segment.collect(directory, "other", grace_ns=0) == []
    assert path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of another user")
def test_another_users_file_is_left_alone_even_by_root(directory: Path) -> None:
    path = leave_a_dead_writer(directory)
    os.chown(path, 12345, 12345)
    assert segment.collect(directory, "", grace_ns=0) == []
    assert path.exists()


def test_what_is_no_dead_writers_file_is_left_alone(directory: Path) -> None:
    whole = leave_a_dead_writer(directory).read_bytes()
    for name, content in {"cut": whole[:4000], "zeros": bytes(8192), "text": b"x" * 8192}.items():
        (directory / f"ttmem1..{name}").write_bytes(content)
    (directory / "ttmem1..link").symlink_to("/etc/hostname")
    os.mkfifo(directory / "ttmem1..fifo")
    (directory / "notes").write_bytes(whole)
    before = {p.name for p in directory.iterdir()}
    ((path, _),) = segment.collect(directory, "", grace_ns=0)
    assert {p.name for p in directory.iterdir()} == before - {path.name}


def test_the_dead_do_not_look_alive_while_they_are_collected(directory: Path) -> None:
    leave_a_dead_writer(directory)

    def body() -> None:
        mark()
        segment.collect(directory, "", grace_ns=0)
        mark()

    stops = 0
    with Tracee(body) as collector:
        while collector.to_system_call():
            stops += 1
            host = Host(directory, "")
            try:
                assert all(part.state == "stale" for part in host.parts())
            finally:
                host.close()
    assert stops > 10
    assert list(directory.iterdir()) == []


def test_two_collectors_stopped_anywhere_remove_each_file_once(directory: Path) -> None:
    def body() -> None:
        mark()
        segment.collect(directory, "", grace_ns=0)
        mark()

    stop = 0
    ended = False
    with ttmem.publish(9, grid=(1, 1)) as living:
        while not ended:
            stop += 1
            dead = leave_a_dead_writer(directory)
            with Tracee(body) as first:
                # The first one waits in the middle; the second goes through, and then the first goes on.
                ended = not all(first.to_system_call() for _ in range(stop))
                segment.collect(directory, "", grace_ns=0)
                if not ended:
                    first.run_to_mark()
            assert not dead.exists()
            assert list(directory.iterdir()) == [living.path]


def test_collectors_racing_with_writers_that_start_and_die_remove_no_living_one(directory: Path) -> None:
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    segment.collect(directory, "", grace_ns=0)
            finally:
                os._exit(0)
        pids.append(pid)
    try:
        for _ in range(30):
            with ttmem.publish(3, grid=(1, 1)) as publisher:
                publisher.allocate("DRAM", 1)
                assert publisher.path is not None
                assert publisher.path.exists()
                child = os.fork()
                if child == 0:
                    try:
                        ttmem.publish(0, grid=(1, 1)).allocate("DRAM", 10)
                    finally:
                        os.kill(os.getpid(), signal.SIGKILL)
                os.waitpid(child, 0)
                assert publisher.path.exists()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    segment.collect(directory, "", grace_ns=0)
    assert list(directory.iterdir()) == []


def nameless_files_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    true_open = os.open

    def open_without(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return true_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(segment.os, "open", open_without)


def test_what_a_writer_left_under_the_hidden_name_of_its_making_goes(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless_files_fail(monkeypatch)

    def body() -> None:
        mark()
        ttmem.publish(0, grid=(1, 1))
        mark()

    hidden = 0
    stop = 0
    while True:
        stop += 1
        with Tracee(body) as writer:
            if not all(writer.to_system_call() for _ in range(stop)):
                break
            while_alive = set(directory.iterdir())
            # While it is being made it is nobody's to remove.
            assert segment.collect(directory, "", grace_ns=0) == []
            assert set(directory.iterdir()) == while_alive
            writer.kill()
        hidden += any(path.name.startswith(".") for path in directory.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(segment, "MAKING_NS", 0)
            segment.collect(directory, "", grace_ns=0)
        assert list(directory.iterdir()) == []
    assert hidden > 5
    for path in directory.iterdir():
        path.unlink()
